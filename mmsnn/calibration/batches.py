"""Calibration batches: one tensor for a network of one input, a tuple, list or dictionary of tensors for several."""
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..distributed import agree, processes

Batch: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def call_with(function: Any, batch: Batch) -> Any:
    """Call a network, or a method that takes its inputs, with those of a batch."""
    if isinstance(batch, Mapping):
        return function(**batch)
    return function(batch) if isinstance(batch, Tensor) else function(*batch)


def tensors_of(batch: Batch) -> list[Tensor]:
    """The inputs of a batch, in order."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    return [batch] if isinstance(batch, Tensor) else list(batch)


def images_in(batch: Batch) -> int:
    """How many images, or whatever the first input has along its first dimension."""
    return len(tensors_of(batch)[0])


def size_of(batch: Batch) -> tuple[int, ...]:
    """The size of one image, (C, H, W), or of whatever else, of each input one after the other."""
    return tuple(size for tensor in tensors_of(batch) for size in tensor.shape[1:])


def materialise(batches: Iterable[Batch], device: torch.device, network: nn.Module | None = None) -> list[Any]:
    """Check and collect calibration batches.

    Args:
        batches: see :data:`Batch`.
        device: to which their tensors are moved.
        network: whose ``forward`` has to accept them; not checked where it is None.

    Raises:
        ValueError: no batch, or one that does not consist of floating-point tensors of finite values, or that has
            other inputs than the network.
    """
    if isinstance(batches, Tensor):  # one batch: iterating would give images without their first dimension
        batches = [batches]
    collected: list[Any] = []
    problem = None
    try:
        collected = list(_checked(batches, device, network))
        if not collected:
            raise ValueError('no calibration batch was given: at least one image is needed'
                             + (' in every process' if processes()[1] > 1 else ''))
    except ValueError as error:
        problem = error
    agree(problem)
    return collected


def _checked(batches: Iterable[Batch], device: torch.device, network: nn.Module | None) -> Iterator[Batch]:
    signature = None if network is None else inspect.signature(network.forward)
    for index, batch in enumerate(batches):
        several = isinstance(batch, (tuple, list, Mapping))
        values: list[Any] = tensors_of(batch) if several else [batch]
        for value in values or [batch]:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or not len(value):
                what = f'{tuple(value.shape)} of {value.dtype}' if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f'calibration batch {index} must be a floating-point tensor (N, ...), or a tuple or '
                                 f'dictionary of them for a network of several inputs, not {what}. Give the inputs '
                                 'alone, without labels')
            if not torch.isfinite(value).all():
                raise ValueError(f'calibration batch {index} holds NaN or infinite values')
        if signature is not None:
            try:
                call_with(signature.bind, batch)
            except TypeError as error:
                raise ValueError(f'calibration batch {index} has {len(values)} inputs, the network takes '
                                 f'{signature}: {error}. Give the inputs alone, without labels') from None
        if isinstance(batch, Mapping):
            yield {name: _plain(value, device) for name, value in batch.items()}
        else:
            yield tuple(_plain(value, device) for value in batch) if several else _plain(values[0], device)


def _plain(value: Tensor, device: torch.device) -> Tensor:
    """An input that the gradient descent on weights may read, also where it was made in inference mode."""
    value = value.detach().to(device)
    return value.clone() if value.is_inference() else value
