"""Closed forms: the firing rate of an integrate-and-fire neuron under a constant current, and its gradient."""
import torch
from torch import Tensor


def firing_rate(current: Tensor, threshold: Tensor | float, time_steps: int, potential: Tensor | float = 0.,
                max_rate: float = 1) -> Tensor:
    """Mean output of an integrate-and-fire neuron over T steps of constant current [Eq. 10, 17 and 21]::

        h / T * clip(floor((T * z + v(0)) / h), 0, r T)

    Exact for a constant current z and an initial potential 0 <= v(0) < h; for currents that vary in time it is the
    approximation that calibration minimises. The gradient passes the floor as if it were the identity [Eq. 24]
    and is zero where the rate is clipped.

    Args:
        current: z, any shape.
        threshold: h, positive, broadcastable to ``current``.
        time_steps: T.
        potential: initial membrane potential v(0), broadcastable; ``h / 2`` rounds instead of flooring.
        max_rate: r, the most spikes per step; 1 but for neurons that fire in bursts.
    """
    level = (time_steps * current + potential) / threshold
    if level.requires_grad:
        return threshold / time_steps * straight_through_floor(level).clamp(0, max_rate * time_steps)
    return level.floor_().clamp_(0, max_rate * time_steps).mul_(threshold / time_steps)


def clip_floor(current: Tensor, threshold: Tensor | float, time_steps: int) -> Tensor:
    """ClipFloor [Eq. 10]: the rate of a neuron that starts at zero."""
    return firing_rate(current, threshold, time_steps)


def clip_round(current: Tensor, threshold: Tensor | float, time_steps: int) -> Tensor:
    """ClipRound [Eq. 17]: the rate of a neuron with ``h / (2 T)`` more bias, or one that starts at ``h / 2``."""
    return firing_rate(current, threshold, time_steps, potential=threshold / 2)


def straight_through_floor(x: Tensor) -> Tensor:
    """Floor whose gradient is one [Eq. 24; Bengio et al. 2013]."""
    return x + (torch.floor(x) - x).detach() if x.requires_grad else torch.floor(x)
