"""Firing thresholds from the ANN's activations: maximum, percentile, and least squared error [Algorithm 1].

Activations are streamed into one histogram per channel, which serves every rule, every T and both granularities.
"""
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import largest, total

BINS = 2048
GRID = 100
PERCENTILE = 99.99
SMALLEST_EXPONENT = -64


class ActivationHistogram:
    """Histograms of non-negative activations, one per channel, of range unknown beforehand.

    The bins of a channel cover [0, 2**k) where k is the smallest integer that fits all values seen; when a larger
    value arrives, neighbouring bins are merged. As all widths are powers of two this loses nothing but resolution
    (at least ``BINS / 2`` bins lie below the maximum), and the result does not depend on the order of the images.

    Attributes:
        counts: shape (C, BINS), float64 so that sums of billions stay exact.
        exponent: k of each channel, shape (C,); the range is [0, 2**k).
        maximum: largest activation, shape (C,).
    """

    def __init__(self, channels: int, device: torch.device | str = 'cpu') -> None:
        self.counts = torch.zeros(channels, BINS, dtype=torch.float64, device=device)
        self.exponent = torch.full((channels,), SMALLEST_EXPONENT, dtype=torch.int64, device=device)
        self.maximum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._moments: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def width(self) -> Tensor:
        """Width of the bins of each channel, shape (C,)."""
        return torch.ldexp(torch.ones_like(self.maximum), self.exponent) / BINS

    @property
    def centers(self) -> Tensor:
        """Middle of each bin, shape (C, BINS); zero for the first bin, where the zeros of ReLU are."""
        centers = (torch.arange(BINS, device=self.counts.device) + .5) * self.width[:, None]
        centers[:, 0] = 0
        return centers

    def update(self, activations: Tensor) -> None:
        """Add activations of shape (N, C, ...).

        Raises:
            ValueError: NaN or infinity among them.
        """
        values = activations.movedim(1, 0).flatten(1)
        maximum = values.amax(1).double()
        if not torch.isfinite(maximum).all():
            raise ValueError('activations are NaN or infinite: check the checkpoint and the calibration images')
        self.maximum = torch.maximum(self.maximum, maximum)
        self.widen(torch.where(self.maximum > 0, torch.frexp(self.maximum).exponent, SMALLEST_EXPONENT))
        offset = torch.arange(len(values), device=values.device)[:, None] * BINS
        index = (values * (1 / self.width[:, None]).to(values.dtype)).long().clamp_(0, BINS - 1) + offset
        self.counts += torch.bincount(index.flatten(), minlength=self.counts.numel()).view_as(self.counts)

    def widen(self, exponent: Tensor) -> None:
        """Let the range of each channel be at least [0, 2**exponent), merging bins where it grows."""
        self._moments = None
        exponent = torch.maximum(self.exponent, exponent)
        if torch.equal(exponent, self.exponent):
            return
        merge = torch.arange(BINS, device=self.counts.device) >> (exponent - self.exponent).clamp(max=62)[:, None]
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, merge, self.counts)
        self.exponent = exponent

    def gather(self) -> None:
        """Add what other processes have seen; the counts are exact, so that all arrive at the same histogram."""
        self.widen(largest(self.exponent.clone()))
        largest(self.maximum)
        total([self.counts])

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return number and sum of the activations from each bin upwards, (C, BINS + 1), and the sum of squares, (C,).

        Every activation counts as the middle of its bin.
        """
        if self._moments is None:
            x = self.centers
            upwards = [F.pad(value.flip(1).cumsum(1).flip(1), (0, 1)) for value in (self.counts, self.counts * x)]
            self._moments = upwards[0], upwards[1], (self.counts * x ** 2).sum(1)
        return self._moments

    def merged(self) -> 'ActivationHistogram':
        """Return the histogram of all channels together, as a single channel."""
        wide = copy.copy(self)
        wide.widen(self.exponent.max().expand_as(self.exponent))  # replaces the copy's tensors, not their values
        layer = ActivationHistogram(1, self.counts.device)
        layer.counts, layer.exponent = wide.counts.sum(0, keepdim=True), wide.exponent[:1].clone()
        layer.maximum = self.maximum.amax(0, keepdim=True)
        return layer


def max_threshold(histogram: ActivationHistogram) -> Tensor:
    """The largest activation: nothing is clipped [Rueckauer et al. 2017]. Shape (C,)."""
    return histogram.maximum


def percentile_threshold(histogram: ActivationHistogram, percentile: float = PERCENTILE) -> Tensor:
    """The given percentile of all activations, zeros included [Rueckauer et al. 2017: 99.9 to 99.99]. Shape (C,).

    Resolved to one bin: the upper edge of the bin that holds the percentile, and at most the maximum.
    """
    cumulative = histogram.counts.cumsum(1)
    below = (cumulative < cumulative[:, -1:] * (percentile / 100)).sum(1)
    return torch.minimum((below + 1) * histogram.width, histogram.maximum)


def mmse_threshold(histogram: ActivationHistogram, time_steps: int, rounding: str = 'round',
                   grid: int = GRID) -> Tensor:
    """The threshold of least squared error between activation and firing rate [Algorithm 1, Eq. 18]. Shape (C,).

    Args:
        histogram: of the ANN's activations x.
        time_steps: T of the rate ``h/T clip(floor(T x / h + 1/2), 0, T)``.
        rounding: ``'round'`` scores ClipRound, which the simulation computes; ``'floor'`` ClipFloor (no 1/2).
        grid: N; the candidates are ``j / N max(x)`` for j = 1..N.
    """
    best = torch.full_like(histogram.maximum, torch.inf)
    threshold = histogram.maximum.clone()
    for step in range(grid, 0, -1):
        candidate = histogram.maximum * (step / grid)
        error = squared_error(histogram, candidate, time_steps, rounding)
        threshold = torch.where(error < best, candidate, threshold)
        best = torch.minimum(best, error)
    return threshold


def squared_error(histogram: ActivationHistogram, threshold: Tensor, time_steps: int, rounding: str) -> Tensor:
    """Sum of ``(x - q(x))**2`` over a histogram, q being ClipRound or ClipFloor with the given thresholds, (C,).

    q rises by h/T at each of the T values ``e_m = (m - 1/2) h/T`` (or ``m h/T``), so that with N_m and S_m the
    number and the sum of the activations from e_m upwards::

        sum (x - q)**2 = sum x**2 + sum_m [(2 m - 1) (h/T)**2 N_m - 2 (h/T) S_m]

    This looks up T cumulative sums where a direct evaluation visits every bin.
    """
    number, total, squares = histogram.moments()
    level = torch.arange(1, time_steps + 1, device=threshold.device)
    step = (threshold / time_steps)[:, None]
    edge = (level - (.5 if rounding == 'round' else 0.)) * step
    first_bin = torch.ceil(edge / histogram.width[:, None] - .5).clamp_(1, BINS).long()
    return squares + ((2 * level - 1) * step ** 2 * number.gather(1, first_bin)
                      - 2 * step * total.gather(1, first_bin)).sum(1)


RULES: dict[str, Callable[[ActivationHistogram, int, str], Tensor]] = {
    'max': lambda histogram, time_steps, rounding: max_threshold(histogram),
    'percentile': lambda histogram, time_steps, rounding: percentile_threshold(histogram),
    'mmse': mmse_threshold,
}
"""Rules by the name that :class:`mmsnn.Pipeline` gives as ``threshold``; add your own, see docs/extending.md.

A rule gets the histogram of a layer's activations, T times ``max_rate``, and ``rounding`` (``'round'`` or ``'floor'``).
It returns the largest mean output that the neurons of each channel shall have, shape (C,); where that is zero, the
channel gets the smallest threshold of its layer.
"""


def choose_threshold(histogram: ActivationHistogram, rule: str, time_steps: int, channel_wise: bool = True,
                     rounding: str = 'round') -> Tensor:
    """Choose firing thresholds by ``rule``, a name in :data:`RULES`.

    Returns:
        Positive and finite, shape (C,), or (1,) when not ``channel_wise``. A channel that never was active gets the
        smallest threshold of its layer, so that a spike it may emit one day does the least harm.

    Raises:
        ValueError: no such rule, or it returns something else than one finite number per channel.
    """
    if rule not in RULES:
        raise ValueError(f'threshold must be one of {list(RULES)}, not {rule!r}')
    if not channel_wise:
        histogram = histogram.merged()
    threshold = RULES[rule](histogram, time_steps, rounding)
    if threshold.shape != histogram.maximum.shape or not torch.isfinite(threshold).all():
        raise ValueError(f'threshold rule {rule!r} must return one finite number for each of {len(histogram.maximum)} '
                         f'channels, not {threshold!r}')
    return positive(threshold)


def positive(threshold: Tensor) -> Tensor:
    """Give channels without a positive threshold the smallest of their layer, or all 1 where none is positive."""
    alive = threshold > 0
    smallest = threshold[alive].min() if alive.any() else threshold.new_ones(())
    return torch.where(alive, threshold, smallest).float()
