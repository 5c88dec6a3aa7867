"""Firing thresholds from the ANN's activations: maximum, percentile, and least squared error [Algorithm 1].

Activations are streamed into one histogram per channel, which serves every rule, every T and both granularities.
"""
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..distributed import largest, total

BINS = 2048
GRID = 100
AT_ONCE = 1000  # levels of candidates that are tried before those without a chance are left out
BLOCK = 2 ** 17  # values at a time, so that intermediate ones stay in a core's cache
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
        self._empty = True

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
        self._empty = False
        offset = torch.arange(len(values), device=values.device)[:, None] * BINS
        index = (values * (1 / self.width[:, None]).to(values.dtype)).long().clamp_(0, BINS - 1).add_(offset).flatten()
        if len(index) < self.counts.numel() and not index.is_cuda:  # cheaper than a pass over all bins
            ones = torch.ones((), dtype=self.counts.dtype).expand(len(index))
            self.counts.view(-1).scatter_add_(0, index, ones)
        else:
            self.counts += torch.bincount(index, minlength=self.counts.numel()).view_as(self.counts)

    def widen(self, exponent: Tensor) -> None:
        """Let the range of each channel be at least [0, 2**exponent), merging bins where it grows."""
        self._moments = None
        exponent = torch.maximum(self.exponent, exponent)
        if torch.equal(exponent, self.exponent):
            return
        grown = torch.nonzero(exponent > self.exponent).flatten()
        for rows in () if self._empty else grown.split(BLOCK // BINS):
            merge = torch.arange(BINS, device=rows.device) >> (exponent - self.exponent)[rows].clamp(max=62)[:, None]
            counts = self.counts[rows]
            self.counts[rows] = torch.zeros_like(counts).scatter_add_(1, merge, counts)
        self.exponent = exponent

    def gather(self) -> None:
        """Add what other processes have seen; the counts are exact, so that all arrive at the same histogram."""
        self.widen(largest(self.exponent.clone()))
        largest(self.maximum)
        total([self.counts])
        self._empty = False

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return number and sum of the activations from each bin upwards, (C, BINS + 1), and the sum of squares, (C,).

        Every activation counts as the middle of its bin.
        """
        if self._moments is None:
            number, total = self.counts.new_empty(2, len(self.counts), BINS + 1)
            squares = torch.zeros_like(self.maximum)
            centers = torch.arange(BINS, device=self.counts.device) + .5
            centers[0] = 0
            for rows in _blocks(len(squares), BINS, self.counts):
                counts, x = self.counts[rows], centers * self.width[rows, None]
                # Counts are integers and x odd multiples of a power of two: these sums are exact in any order.
                for upwards, value in (number[rows], counts), (total[rows], counts * x):
                    upwards[:, 0] = 0
                    torch.cumsum(value, 1, out=upwards[:, 1:])
                    torch.sub(upwards[:, -1:].clone(), upwards, out=upwards)
                squares[rows] = (counts * x ** 2).sum(1)
            self._moments = number, total, squares
        return self._moments

    def channels(self) -> Iterator[tuple[slice, 'ActivationHistogram']]:
        """Yield some channels after the other, and a histogram of them: all at once would be much memory."""
        for rows in _blocks(len(self.maximum), BINS // 4, self.counts):
            few = copy.copy(self)
            few.counts, few.exponent, few.maximum = self.counts[rows], self.exponent[rows], self.maximum[rows]
            few._moments = None
            yield rows, few

    def merged(self) -> 'ActivationHistogram':
        """Return the histogram of all channels together, as a single channel."""
        wide = copy.copy(self)
        wide.counts = self.counts.clone()
        wide.widen(self.exponent.max().expand_as(self.exponent))
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
    threshold = torch.empty_like(histogram.maximum)
    for rows, few in histogram.channels():
        threshold[rows] = _least_error(few, time_steps, rounding, grid)
    return threshold


def _least_error(histogram: ActivationHistogram, time_steps: int, rounding: str, grid: int) -> Tensor:
    number, total, squares = histogram.moments()
    threshold = histogram.maximum.clone()
    best = torch.full_like(threshold, torch.inf)
    channels = torch.nonzero(threshold > 0).flatten()  # those that may have a better one
    shares = torch.arange(grid, 0, -1, dtype=torch.float64, device=threshold.device) / grid
    for several in shares.split(max(5, AT_ONCE // time_steps)):
        if not len(channels):
            break
        h = histogram.maximum[channels, None] * several
        errors = squared_error(histogram, h, time_steps, rounding, channels)
        least = errors.amin(1)
        first = (errors == least[:, None]).int().argmax(1, keepdim=True)  # the largest of the best
        better = least < best[channels]
        threshold[channels] = torch.where(better, h.gather(1, first)[:, 0], threshold[channels])
        best[channels] = torch.minimum(least, best[channels])
        # What exceeds a threshold exceeds all smaller ones: clipping alone costs at least sum(x - h)**2 / N.
        h = h[:, -1]
        above = torch.ceil(h / histogram.width[channels] + .5).clamp_(1, BINS).long()
        count = number[channels, above]
        clipped = (total[channels, above] - h * count).square() / count.clamp(min=1)
        channels = channels[clipped <= best[channels] + 1e-9 * squares[channels]]
    return threshold


def squared_error(histogram: ActivationHistogram, threshold: Tensor, time_steps: int, rounding: str,
                  channels: Tensor | None = None) -> Tensor:
    """Sum of ``(x - q(x))**2`` over a histogram, q being ClipRound or ClipFloor with given thresholds.

    q rises by h/T at each of the T values ``e_m = (m - 1/2) h/T`` (or ``m h/T``), so that with N_m and S_m the
    number and the sum of the activations from e_m upwards::

        sum (x - q)**2 = sum x**2 + sum_m [(2 m - 1) (h/T)**2 N_m - 2 (h/T) S_m]

    This looks up T cumulative sums where a direct evaluation visits every bin.

    Args:
        histogram: of the ANN's activations x.
        threshold: one for each channel, (C,), or several, (C, G).
        time_steps: T.
        rounding: ``'round'`` or ``'floor'``.
        channels: numbers of the C channels, where these are not all of the histogram's.

    Returns:
        Errors, shaped as ``threshold``.
    """
    number, total, squares = histogram.moments()
    if channels is None:
        channels = torch.arange(len(threshold), device=threshold.device)
    scale = 1 / histogram.width[channels]  # powers of two: exact
    level = torch.arange(1, time_steps + 1, device=threshold.device)
    middle, slope = level - (.5 if rounding == 'round' else 0.), 2 * level - 1
    steps = (threshold / time_steps).view(len(threshold), -1, 1)
    errors = torch.empty_like(steps[..., 0])
    for rows in _blocks(len(steps), steps.shape[1] * time_steps, steps):
        chosen, step = channels[rows], steps[rows]
        edge = (middle * step).mul_(scale[rows, None, None])
        first_bin = edge.sub_(.5).ceil_().clamp_(1, BINS).long().flatten(1)
        change = (slope * step ** 2).mul_(number[chosen].gather(1, first_bin).view_as(edge))
        change.sub_(total[chosen].gather(1, first_bin).view_as(edge).mul_(2 * step))
        errors[rows] = squares[chosen, None] + change.sum(2)
    return errors.view_as(threshold)


def _blocks(channels: int, values: int, like: Tensor) -> list[slice]:
    """Slices of the channels: on a CPU those whose intermediate values, so many each, a cache can hold."""
    size = max(1, channels if like.is_cuda else BLOCK // values)
    return [slice(start, start + size) for start in range(0, channels, size)]


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
