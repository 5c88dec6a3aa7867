"""Integrate-and-fire neurons [section 3.2 of the paper], and those that fire in bursts and take spikes back."""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .model import NEURONS, NeuronModel, State, advance, half
from .rates import firing_rate

RESETS = ('subtract', 'zero')
Bias = Tensor | Sequence[Tensor] | None


@dataclass(frozen=True, repr=False)
class FiringRule(NeuronModel):
    """How integrate-and-fire neurons fire and reset.

    At every step, with membrane potential v, input current c, bias b and threshold h [Eq. 2 to 4]::

        u = v + c + b;   s = h if u >= h else 0;   v = u - s

    They may emit several spikes a step, and take spikes back. With at most m a step, and n spikes emitted so far::

        u = v + c + b;   k = clip(floor(u / h), -m or 0, m);   k = clip(n + k, 0, l) - n
        s = k h;   v = u - s;   n = n + k

    l is r T where neurons ``clip``; otherwise they may emit what m allows, m T, up to the activation's own ceiling.
    Signed and without a bound m, n after T steps is exactly ``clip(floor(sum of currents / h), 0, l)``, whatever the
    order in which currents arrive: the network then equals the ANN with activations quantised to l + 1 levels.

    Attributes:
        reset: ``'subtract'`` the threshold from the membrane potential, the soft reset above, or reset it to ``'zero'``
            after a spike, the hard reset of earlier methods, which forgets how far u was above h.
        signed: emit minus the threshold while the potential is below zero, never taking back more spikes than have
            been emitted: the signed neuron with memory [Wang et al. 2022; Hu et al. 2023, Fast-SNN].
        max_spikes: m, the largest number of spikes (or negative spikes) in one time step; above 1 they are bursts
            [Li and Zeng 2022].
        max_rate: r, the firing rate in spikes per step up to which thresholds are chosen.
        clip: whether a neuron that counts emits at most r T spikes in all. Otherwise activations above those of the
            calibration images are not clipped.
        ceiling: the largest value of the activation, such as 6 of ReLU6, which takes the place of r T.
    """

    reset: str = 'subtract'
    signed: bool = False
    max_spikes: int = 1
    max_rate: int = 1
    clip: bool = True
    ceiling: float = math.inf

    options = (*NeuronModel.options, 'reset', 'signed', 'max_spikes', 'max_rate', 'clip')

    @classmethod
    def for_levels(cls, pipeline, levels: int) -> dict:
        if levels < 2:
            raise ValueError(f'neurons need at least 2 levels a step, not {levels}')
        most = half(levels) if pipeline.signed else levels - 1
        return dict(max_spikes=most, max_rate=most)

    @classmethod
    def of(cls, pipeline, time_steps: int) -> 'FiringRule':
        most = pipeline.max_rate * time_steps
        largest = min(pipeline.max_spikes or most, most) if pipeline.clip else pipeline.max_spikes
        return cls(pipeline.reset, pipeline.signed, largest, pipeline.max_rate, pipeline.clip)

    def under(self, ceiling: float, activation: nn.Module | None = None) -> 'FiringRule':
        return self if self.clip else replace(self, ceiling=ceiling)

    @property
    def counts(self) -> bool:
        """Whether neurons have to remember how many spikes they have emitted."""
        # Where a step allows no more than the mean rate, no number of steps does.
        return self.signed or (self.max_spikes > self.max_rate if self.clip else self.ceiling < math.inf)

    @property
    def closed_form(self) -> bool:  # type: ignore[override]  # here it depends on the choices
        return self.signed  # what was fired too early is taken back

    @property
    def lowest(self) -> int:
        return -self.max_spikes if self.signed else 0

    @property
    def highest(self) -> int:
        return self.max_spikes

    @property
    def peak(self) -> float:
        return self.max_rate

    @property
    def bound(self) -> float:
        return self.max_rate if self.clip else self.max_spikes

    def levels(self, time_steps: int) -> int:
        return self.max_rate * time_steps

    def start(self, potential: Tensor, time_steps: int) -> State:
        return (potential, torch.zeros_like(potential)) if self.counts else (potential,)

    def storage(self, time_steps: int) -> tuple[torch.dtype | None, ...]:
        # The compiler vectorises no int16, and float16 takes half as long again as int32.
        fits = self.bound * time_steps <= torch.iinfo(torch.uint8).max
        return (None, torch.uint8 if fits else torch.int32) if self.counts else (None,)

    def step(self, current: Tensor, bias: Tensor, state: State, threshold: Tensor,
             time_steps: int) -> tuple[Tensor, State]:
        return self._step(current, bias, state, threshold, time_steps, None, (None,) * len(state))

    def step_in_place(self, current: Tensor, bias: Tensor, state: State, threshold: Tensor, time_steps: int,
                      spikes: Tensor) -> None:
        self._step(current, bias, state, threshold, time_steps, spikes, state)

    def _step(self, current: Tensor, bias: Tensor, state: State, threshold: Tensor, time_steps: int,
              out: Tensor | None, after: Sequence[Tensor | None]) -> tuple[Tensor, State]:
        """One step; spikes are written to ``out``, the state to ``after``, or to new tensors where these are None."""
        # What has been computed here is changed in place: large temporaries cost more than the arithmetic.
        potential = torch.add(state[0], current, out=after[0]).add_(bias)
        if self.counts:
            total = torch.div(potential, threshold, out=out).floor_().clamp_(self.lowest, self.max_spikes)
            total = total.add_(state[1]).clamp_(0, self.bound * time_steps)
            if self.ceiling < math.inf:
                total = torch.minimum(total, self.most(threshold, time_steps), out=out)
            number = total.sub_(state[1])
            count = torch.add(state[1], number, out=after[1])
            spikes = number.mul_(threshold)
            return spikes, (potential.sub_(spikes), count)
        if self.max_spikes > 1:
            spikes = torch.div(potential, threshold, out=out).floor_().clamp_(0, self.max_spikes).mul_(threshold)
            return spikes, (potential.sub_(spikes),)
        spikes = torch.mul(torch.ge(potential, threshold, out=out), threshold, out=out)
        if self.reset == 'zero':
            return spikes, (potential.masked_fill_(spikes > 0, 0.),)
        return spikes, (potential.sub_(spikes),)

    def rate(self, current: Tensor, threshold: Tensor | float, time_steps: int, potential: Tensor | float) -> Tensor:
        rate = firing_rate(current, threshold, time_steps, potential, self.bound)
        if self.ceiling < math.inf:
            step = torch.as_tensor(threshold, dtype=rate.dtype, device=rate.device) / time_steps
            rate = torch.minimum(rate, step * self.most(step * time_steps, time_steps))
        return rate

    def most(self, threshold: Tensor, time_steps: int) -> Tensor:
        """How many spikes the activation's ceiling is worth, in the shape of the threshold."""
        return torch.floor(self.ceiling * time_steps / threshold + .5)


NEURONS['integrate-and-fire'] = FiringRule


def integrate_and_fire(currents: Tensor, potential: Tensor, threshold: Tensor, bias: Bias = None,
                       out: Tensor | None = None, reset: str = 'subtract') -> Tensor:
    """Advance plain integrate-and-fire neurons, see :class:`FiringRule`, by K time steps.

    Args:
        currents: input currents, shape (K, N, ...). A constant current may be an expanded view.
        potential: membrane potential before the first step, shape (N, ...). **Updated in place.**
        threshold: broadcastable to (N, ...), positive.
        bias: additional current: constant, broadcastable to (N, ...), or one for each step, a sequence of K such.
        out: where to write the spikes, shape (K, N, ...); allocated when not given.
        reset: ``'subtract'`` or ``'zero'``.

    Returns:
        Spikes of value 0 or ``threshold``, shape (K, N, ...).
    """
    return _advance_in_place(FiringRule(reset), currents, (potential,), threshold, bias, len(currents), out)


def integrate_and_burst(currents: Tensor, potential: Tensor, count: Tensor, threshold: Tensor, bias: Bias,
                        time_steps: int, rule: FiringRule, out: Tensor | None = None) -> Tensor:
    """Advance neurons that fire in bursts or take spikes back, see :class:`FiringRule`, by K time steps.

    Args:
        currents: input currents, shape (K, N, ...).
        potential, count: state before the first step, shape (N, ...). **Updated in place.**
        threshold, bias: as in :func:`integrate_and_fire`.
        time_steps: T.
        rule: m, r, and whether spikes may be negative. The reset is by subtraction.
        out: where to write the spikes, shape (K, N, ...); allocated when not given.

    Returns:
        Spikes of value ``k threshold``, shape (K, N, ...).
    """
    if rule.counts:
        return _advance_in_place(rule, currents, (potential, count), threshold, bias, time_steps, out)
    spikes = _advance_in_place(rule, currents, (potential,), threshold, bias, time_steps, out)
    count += torch.round(spikes.sum(0) / threshold)
    return spikes


def _advance_in_place(rule: FiringRule, currents: Tensor, state: State, threshold: Tensor, bias: Bias,
                      time_steps: int, out: Tensor | None) -> Tensor:
    spikes, _, after = advance(rule, currents, torch.zeros(()) if bias is None else bias, state, threshold, time_steps)
    for tensor, value in zip(state, after):
        tensor.copy_(value)
    return torch.stack(spikes, out=out)
