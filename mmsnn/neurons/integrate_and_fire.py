"""Integrate-and-fire neurons [section 3.2 of the paper]."""
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .rates import firing_rate

RESETS = ('subtract', 'zero')
Bias = Tensor | Sequence[Tensor] | None


class FiringRule(NamedTuple):
    """How neurons fire and reset.

    Attributes:
        reset: ``'subtract'`` the threshold from the membrane potential, or reset it to ``'zero'``.
        signed: emit minus the threshold while the potential is below zero, never taking back more spikes than have
            been emitted: the signed neuron with memory [Wang et al. 2022; Hu et al. 2023, Fast-SNN].
        max_spikes: m, the largest number of spikes (or negative spikes) in one time step; above 1 they are bursts
            [Li and Zeng 2022].
        max_rate: r, the largest firing rate in spikes per step: a neuron that counts emits at most r T spikes in all.
    """

    reset: str = 'subtract'
    signed: bool = False
    max_spikes: int = 1
    max_rate: int = 1

    @property
    def counts(self) -> bool:
        """Whether neurons have to remember how many spikes they have emitted."""
        return self.signed or self.max_spikes > 1

    @property
    def lowest(self) -> int:
        """The least number of spikes in one time step: 0, or -m for signed spikes."""
        return -self.max_spikes if self.signed else 0


class NeuronState(NamedTuple):
    """What a layer of neurons carries from step to step: membrane potential and, where the rule counts, spike count."""

    potential: Tensor
    count: Tensor | None = None  # type: ignore[assignment]  # a tuple's own count() is not needed


def integrate_and_fire(currents: Tensor, potential: Tensor, threshold: Tensor, bias: Bias = None,
                       out: Tensor | None = None, reset: str = 'subtract') -> Tensor:
    """Advance integrate-and-fire neurons by K time steps.

    At every step, with membrane potential v, input current c, bias b and threshold h [Eq. 2 to 4]::

        u = v + c + b;   s = h if u >= h else 0;   v = u - s

    Args:
        currents: input currents, shape (K, N, ...). A constant current may be an expanded view.
        potential: membrane potential before the first step, shape (N, ...). **Updated in place.**
        threshold: broadcastable to (N, ...), positive.
        bias: additional current: constant, broadcastable to (N, ...), or one for each step, a sequence of K such.
        out: where to write the spikes, shape (K, N, ...); allocated when not given.
        reset: ``'subtract'``, the soft reset above, or ``'zero'``, the hard reset of earlier methods: v = 0 after a
            spike, which forgets how far u was above h.

    Returns:
        Spikes of value 0 or ``threshold``, shape (K, N, ...).
    """
    spikes = torch.empty(currents.shape, dtype=potential.dtype, device=potential.device) if out is None else out
    for current, constant, spike in zip(currents, _each_step(bias), spikes):
        potential += current
        if constant is not None:
            potential += constant
        torch.ge(potential, threshold, out=spike)
        if reset == 'zero':
            potential.masked_fill_(spike > 0, 0.)
        spike *= threshold
        if reset == 'subtract':
            potential -= spike
    return spikes


def integrate_and_burst(currents: Tensor, potential: Tensor, count: Tensor, threshold: Tensor, bias: Bias,
                        time_steps: int, rule: FiringRule, out: Tensor | None = None) -> Tensor:
    """Advance neurons that may emit several spikes a step, and take spikes back, by K time steps.

    With membrane potential v, current c, bias b, threshold h, at most m spikes a step, and n spikes emitted so far::

        u = v + c + b;   k = clip(floor(u / h), -m or 0, m);   k = clip(n + k, 0, r T) - n
        s = k h;   v = u - s;   n = n + k

    Signed and without a bound m, n after T steps is exactly ``clip(floor(sum of currents / h), 0, r T)``, whatever the
    order in which currents arrive: the network then equals the ANN with activations quantised to r T + 1 levels.

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
    spikes = torch.empty(currents.shape, dtype=potential.dtype, device=potential.device) if out is None else out
    for current, constant, spike in zip(currents, _each_step(bias), spikes):
        potential += current
        if constant is not None:
            potential += constant
        torch.div(potential, threshold, out=spike)
        spike.floor_().clamp_(rule.lowest, rule.max_spikes)
        spike += count
        spike.clamp_(0, rule.max_rate * time_steps)
        spike -= count
        count += spike
        spike *= threshold
        potential -= spike
    return spikes


def _each_step(bias: Bias) -> Iterable[Tensor | None]:
    return itertools.repeat(bias) if bias is None or isinstance(bias, Tensor) else bias


class IFNeuron(nn.Module):
    """The state of one layer of integrate-and-fire neurons: one instance per ReLU call site of the ANN.

    Called as a module it is the activation it replaced, ``clip(x, 0, ceiling)``, so that the converted graph
    called directly is still the (BN-folded) ANN. The time loop calls :meth:`fire` instead.

    Args:
        ceiling: largest value of the replaced activation: infinite for ReLU, 6 for ReLU6.

    Attributes:
        rule: how the neurons fire and reset. It comes from the pipeline, and after loading from the settings of the
            network.
        time_steps: T, which bounds the spike count where the rule counts.
        recorders: called with how many spikes there were, a burst of k as k, where somebody counts them.

    Buffers (all float, shape (1,) for one value per layer or (C,) per channel):
        threshold: firing threshold h and value of a spike. NaN until thresholds have been chosen.
        bias: current added at every step, on top of the convolution's own bias; also (T, C), one for each step.
        initial_potential: v(0); also (C, H, W) when calibrated per position.
    """

    threshold: Tensor
    bias: Tensor
    initial_potential: Tensor

    def __init__(self, ceiling: float = math.inf) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.rule = FiringRule()
        self.time_steps = 1
        self.recorders: list[Callable[[float], None]] = []
        self.register_buffer('threshold', torch.full((1,), math.nan))
        self.register_buffer('bias', torch.zeros(1))
        self.register_buffer('initial_potential', torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0., self.ceiling)

    def start(self, current: Tensor) -> NeuronState:
        """Return the state before the first step for one step's current, shape (N, ...).

        Raises:
            ValueError: the initial potential is per position and was calibrated for another image size.
        """
        initial = per_channel(self.initial_potential, current)
        if self.initial_potential.ndim > 1 and initial.shape != current.shape[1:]:
            raise ValueError(
                f'the initial potential was calibrated per position for feature maps of {tuple(initial.shape)}, but '
                f"this input gives {tuple(current.shape[1:])}. Use images of the calibrated size, or calibrate with "
                "potential='channel' (one value per channel), which serves every size.")
        potential = initial.expand(current.shape).to(current.dtype, copy=True).contiguous()
        return NeuronState(potential, torch.zeros_like(potential) if self.rule.counts else None)

    def fire(self, currents: Tensor, state: NeuronState, start: int = 0, out: Tensor | None = None) -> Tensor:
        """Advance by the K steps of ``currents``, shape (K, N, ...), from step ``start`` on; updates ``state``.

        See :func:`integrate_and_fire` and :func:`integrate_and_burst`.
        """
        threshold = per_channel(self.threshold, currents[0])
        bias: Bias
        if self.bias.ndim > 1:
            bias = [per_channel(value, currents[0]) for value in self.bias[start:start + len(currents)]]
        else:
            bias = per_channel(self.bias, currents[0])
        if state.count is not None:
            spikes = integrate_and_burst(currents, state.potential, state.count, threshold, bias, self.time_steps,
                                         self.rule, out)
        else:
            spikes = integrate_and_fire(currents, state.potential, threshold, bias, out, self.rule.reset)
        if self.recorders:
            number = self._count(spikes, threshold)
            for record in self.recorders:
                record(number)
        return spikes

    def _count(self, spikes: Tensor, threshold: Tensor) -> float:
        if self.rule.counts:
            return float((spikes / threshold).round().abs().sum(dtype=torch.float64))
        return int(torch.count_nonzero(spikes))

    @property
    def mean_bias(self) -> Tensor:
        """The bias, averaged over time where each step has its own; shape (1,) or (C,)."""
        return self.bias.mean(0) if self.bias.ndim > 1 else self.bias

    def rate(self, current: Tensor) -> Tensor:
        """The firing rate under a constant current, in closed form [Eq. 17]; shape (N, ...)."""
        threshold, bias, initial = (per_channel(value, current) for value in (
            self.threshold, self.mean_bias, self.initial_potential))
        return firing_rate(current + bias, threshold, self.time_steps, initial, self.rule.max_rate)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # A buffer's shape says how finely it was calibrated, which a fresh neuron cannot know: take the stored one.
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def per_channel(value: Tensor, x: Tensor) -> Tensor:
    """Shape a (1,) or (C,) value so that it broadcasts along the channels (dimension 1) of ``x``, (N, C, ...)."""
    return value.view(-1, *[1] * (x.ndim - 2)) if value.ndim == 1 else value
