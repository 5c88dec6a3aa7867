"""What a network may be called with."""
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def check_finite(values: Iterable[Any]) -> None:
    """Refuse inputs that neurons would hide: NaN is above no threshold, and infinity fires like any large current.

    Raises:
        ValueError: a tensor holds NaN or infinity.
    """
    for number, value in enumerate(values):
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            # One pass over memory, and of NaN both are NaN.
            if not torch.isfinite(torch.stack(torch.aminmax(value))).all():
                raise ValueError(f'input {number} holds NaN or infinite values, which neurons would turn into ordinary '
                                 'outputs: check the images and what prepares them')
