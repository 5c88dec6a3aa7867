"""Neurons that send changes: what follows adds up what it receives, and who has nothing new to say is silent.

Differential coding: O'Connor and Welling, *Sigma Delta Quantized Networks*, 2016; Huang et al., *Differential Coding
for Training-Free ANN-to-SNN Conversion*, ICML 2025.
"""
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .model import NEURONS, NeuronModel, State, half
from .rates import straight_through_floor
from .thresholds import ActivationHistogram, positive

CANDIDATES = 64  # ranges that are tried for each channel
LARGEST = 2.  # of them, in largest activations
RESOLUTION = 32  # entries of a table for each h
LARGEST_SIZE = 2 ** 15  # of a spike, in thresholds: what float32 still tells apart, and tables hold
NARROW_STEPS = 3  # from this one on the dead zone has its final width


@dataclass(frozen=True, repr=False)
class Differential(NeuronModel):
    """Sends the difference between its activation and what it has sent so far, as one spike of a few sizes.

    With S(t) the sum of all that the neuron has received (weights times spikes, and the bias once), f the activation
    that it stands for, and y(t) the sum of what it has sent [Huang et al. 2025]::

        e = f(S(t)) - y(t-1);    s(t) = Q(e);    y(t) = y(t-1) + s(t)

    Q is the nearest of 0 and plus or minus h, 2 h, 4 h, ..., 2**(n-1) h (``uniform``: h, 2 h, 3 h, ..., n h), h being
    the threshold: 2 n + 1 values a step, for any activation and either sign. Nothing is sent while e is at most d h,
    the dead zone: half of h rounds, a wider one saves spikes that would correct little. Under a current that has
    settled e gets into it, after which nobody fires: y is f(S) to within d h, whatever T is.

    What is sent early is a guess about sums that still change, and a spike that corrects little may have to be taken
    back. A zone that narrows by a factor r in the first steps, ``d(t) = d r**max(0, min(T, 3) - t)`` at t = 1 ... T,
    leaves small differences to the third step. Sizes that shrink by a factor s, ``h(t) = h s**max(0, k - t)``, dead
    zone included, are large where the way is long, and small where what is left is small.

    Attributes:
        sizes: n, how many sizes a spike can have.
        uniform: whether sizes are multiples of h instead of powers of two times h.
        dead_zone: d, from 0.5 to 1, in thresholds.
        narrowing: r, at least 1; with 1 the zone has one width throughout.
        shrinking: s, at least 1; with 1 sizes are the same throughout.
        settling_steps: k, the step from which on sizes no longer shrink.
        scale: by what factor sizes are larger at this step, see :meth:`at`.
    """

    sizes: int = 4
    uniform: bool = False
    dead_zone: float | Tensor = .5
    narrowing: float = 1.
    shrinking: int = 1
    settling_steps: int = 2
    scale: float | Tensor = 1.

    coding = 'differential'
    closed_form = True
    any_activation = True
    options = ('sizes', 'uniform', 'dead_zone', 'narrowing', 'shrinking', 'settling_steps')

    @classmethod
    def check(cls, pipeline) -> None:
        super().check(pipeline)
        if pipeline.sizes < 1:
            raise ValueError(f'sizes must be at least 1, not {pipeline.sizes}')
        if not .5 <= pipeline.dead_zone <= 1:
            raise ValueError(f'dead_zone must be from 0.5 to 1, not {pipeline.dead_zone}: below, neurons would never '
                             'be silent; above, they would keep back more than they can send')
        if not pipeline.narrowing >= 1:
            raise ValueError(f'narrowing must be at least 1, not {pipeline.narrowing}')
        if pipeline.shrinking < 1:
            raise ValueError(f'shrinking must be at least 1, not {pipeline.shrinking}')
        if pipeline.shrinking > 1 and pipeline.settling_steps == 1:
            raise ValueError(f'shrinking={pipeline.shrinking} has no effect with settling_steps=1, the step from which '
                             'on sizes no longer shrink')
        if pipeline.settling_steps < 1:
            raise ValueError(f'settling_steps must be at least 1, not {pipeline.settling_steps}')
        if (highest := cls.of(pipeline, 1).highest) > LARGEST_SIZE:
            raise ValueError(f'the largest spike is worth {highest} thresholds, and may be worth {LARGEST_SIZE} at '
                             'most: choose fewer sizes, or less shrinking in fewer settling_steps')
        if pipeline.threshold not in ('mmse', 'max'):
            raise ValueError(f'threshold={pipeline.threshold!r} has no effect on neurons of kind {pipeline.neuron!r}: '
                             "choose 'mmse' or 'max'")

    @classmethod
    def for_levels(cls, pipeline, levels: int) -> dict:
        return dict(sizes=half(levels))

    @classmethod
    def of(cls, pipeline, time_steps: int) -> 'Differential':
        return cls(pipeline.sizes, pipeline.uniform, pipeline.dead_zone, pipeline.narrowing, pipeline.shrinking,
                   pipeline.settling_steps)

    @property
    def lowest(self) -> int:
        return -self.highest

    @property
    def largest(self) -> int:
        """The largest size once sizes no longer shrink, in units of h."""
        return self.sizes if self.uniform else 2 ** (self.sizes - 1)

    @property
    def highest(self) -> int:
        return self.largest * self.shrinking ** (self.settling_steps - 1)

    @property
    def reach(self) -> int:
        """The largest activation that thresholds are chosen for, in units of h: what the largest spikes add up to."""
        steps = 2 if self.shrinking == 1 else self.settling_steps
        return self.largest * sum(self.shrinking ** step for step in range(steps))

    @property
    def peak(self) -> float:
        return torch.inf  # what one step cannot send, the next ones can

    @property
    def values(self) -> int:
        return 2 * self.sizes + 1

    def start(self, potential: Tensor, time_steps: int) -> State:
        return (torch.zeros_like(potential),)

    def at(self, step: Tensor | float, time_steps: int) -> 'Differential':
        if self.narrowing == self.shrinking == 1:
            return self
        zone, scale = self.dead_zone, self.scale
        if self.narrowing != 1:
            zone = zone * self.narrowing ** steps_before(min(time_steps, NARROW_STEPS), step)
        if self.shrinking != 1:
            scale = float(self.shrinking) ** steps_before(self.settling_steps, step)
        return Differential(self.sizes, self.uniform, zone, scale=scale)

    def step(self, current: Tensor, bias: Tensor, state: State, threshold: Tensor,
             time_steps: int) -> tuple[Tensor, State]:
        """Advance by one time step; ``current`` is the activation f(S(t)), and ``bias`` is in it already."""
        spikes = self.nearest((current - state[0]) / threshold) * threshold
        return spikes, (state[0] + spikes,)

    def nearest(self, difference: Tensor) -> Tensor:
        """Q: the nearest size, in units of h, of a difference in units of h; zero up to the dead zone."""
        if isinstance(self.scale, Tensor) or self.scale != 1:
            return self._nearest(difference / self.scale) * self.scale
        return self._nearest(difference)

    def _nearest(self, difference: Tensor) -> Tensor:
        """The same, both in units of the smallest size of this step."""
        size = difference.abs()
        if self.uniform:
            found = torch.where(size > self.dead_zone, torch.round(difference), 0.)
            return found.clamp(-self.sizes, self.sizes)
        if difference.dtype == torch.float32 and not torch.compiler.is_compiling():
            # The bits of a number above half way between two powers of two are those of the larger one's exponent
            # once half of what they lie apart is added: a third of the time, operation by operation.
            silent = (size > self.dead_zone).logical_not_()
            size.view(torch.int32).add_(0x400000).bitwise_and_(-0x800000)
            return size.clamp_(1., self.largest).copysign_(difference).masked_fill_(silent, 0.)
        found = torch.ones_like(size)
        for power in range(1, self.sizes):  # half way between two sizes: 1.5, 3, 6, ...
            found = torch.where(size >= .75 * 2 ** power, 2. ** power, found)
        found = torch.where(size > self.dead_zone, found, 0.)
        return torch.where(difference < 0, -found, found)

    def rate(self, current: Tensor, threshold: Tensor | float, time_steps: int, potential: Tensor | float) -> Tensor:
        """What has been sent when nothing changes any more; ``current`` is the activation."""
        wanted = current / threshold
        if self.dead_zone == .5:
            return straight_through_floor(wanted + .5) * threshold
        sent = self.settled(wanted.detach(), time_steps)
        return (wanted + (sent - wanted).detach() if wanted.requires_grad else sent) * threshold

    def settled(self, wanted: Tensor, time_steps: int) -> Tensor:
        """What has been sent in the end to meet a steady activation, both in units of h."""
        sent, steady = torch.zeros_like(wanted), replace(self, narrowing=1.)
        for step in range(self.settling_steps - 1 if self.shrinking > 1 else 0):
            sent = sent + steady.at(step, time_steps).nearest(wanted - sent)
        # The largest spikes come first, as long as they are the nearest.
        short, left = 0. if self.uniform or self.sizes == 1 else .25 * self.largest, wanted - sent
        sent = sent + left.sign() * self.largest * torch.floor((left.abs() + short) / self.largest)
        for _ in range(math.ceil(math.log(1.5 * self.largest, 3))):  # each leaves at most a third
            sent = sent + self.nearest(wanted - sent)
        return sent

    def thresholds(self, histogram: ActivationHistogram, pipeline, time_steps: int) -> Tensor:
        """The h under which activations are met best: the least squared error after a few steps of a steady current.

        Smaller sizes round less in the end, larger ones arrive sooner. Two steps (``settling_steps``) are the least in
        which sizes can add up. ``threshold='max'`` lets the largest size be the largest activation.
        """
        if not pipeline.channel_wise:
            histogram = histogram.merged()
        if pipeline.threshold == 'max':
            return positive(histogram.maximum / self.highest)
        # What is left of x after some steps, in units of h, depends on x / h alone: a table serves all candidates.
        size, steady = int(RESOLUTION * self.highest * CANDIDATES / LARGEST), replace(self, narrowing=1.)
        left = (torch.arange(size, dtype=torch.float64, device=histogram.counts.device) + .5) / RESOLUTION
        for step in range(pipeline.settling_steps):
            left = left - steady.at(step, time_steps).nearest(left)
        squared = left.square().float()
        # Bins of a 512th of the range are fine enough; the first holds the zeros, of which nothing is left.
        counts, x = histogram.counts.unflatten(1, (-1, 4)).sum(2).float(), histogram.centers[:, 2::4].float()
        counts[:, 0] = 0
        best = torch.full_like(histogram.maximum, torch.inf)
        found = histogram.maximum / self.highest
        for step in range(CANDIDATES, 0, -1):
            threshold = histogram.maximum * (LARGEST * step / CANDIDATES / self.highest)
            place = (x * (RESOLUTION / threshold.clamp(min=1e-30)).float()[:, None]).clamp_(max=size - 1).int()
            error = (counts * squared[place]).sum(1).double() * threshold.square()
            found = torch.where(error < best, threshold, found)
            best = torch.minimum(best, error)
        return positive(found)


def steps_before(last: int, step: Tensor | float) -> Tensor | float:
    """How many steps are still to come before the last of so many, at a step from 0 on."""
    left = last - 1 - step
    return left.clamp(min=0) if isinstance(left, Tensor) else max(left, 0)


NEURONS['differential'] = Differential
