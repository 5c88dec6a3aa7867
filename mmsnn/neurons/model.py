"""What every kind of neuron is asked for: its state, one step, its closed form, the values that it can emit.

A new kind of neuron is one class, registered in :data:`NEURONS`; docs/extending.md shows one.
"""
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from .thresholds import ActivationHistogram, choose_threshold

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class NeuronModel:
    """A kind of neuron as pure functions; what it remembers is in their arguments.

    Simulation (operation by operation or compiled), calibration, cost counting and export use nothing else of it.
    All numbers of spikes below are in units of the threshold h, which is what one spike is worth.

    Attributes:
        coding: what spikes mean. ``'rate'``: their mean over time is the activation, inputs and biases flow at each
            step, and the network's output is the mean over time. ``'differential'``: their sum is the activation,
            inputs and biases come once, and the network's output is the sum over time. Such neurons hand on the sum of
            what they have sent, the first tensor of their state, as if all that follows had added it up: affine
            operations of sums are sums of affine operations, so that these are the same numbers.
        closed_form: whether ``rate`` of the mean current tells what neurons emit in the end in whatever order currents
            arrive, but for spikes whose correction comes too late. Calibration then goes by it and simulates nothing.
        any_activation: whether they can stand for other activations than ReLU, which a network has that was converted
            with ``coding='differential'``.
    """

    coding = 'rate'
    closed_form = False
    any_activation = False
    # Fields of a Pipeline that not every kind of neuron knows, and those that this one does.
    special = ('reset', 'signed', 'max_spikes', 'max_rate', 'clip', 'shift', 'potential', 'bias_per_step', 'rounding',
               'sizes', 'uniform', 'dead_zone', 'narrowing', 'shrinking', 'settling_steps')
    options: ClassVar[tuple[str, ...]] = ('shift', 'potential', 'bias_per_step', 'rounding')

    @classmethod
    def check(cls, pipeline) -> None:
        """Check the choices of a pipeline for this kind of neurons.

        Raises:
            ValueError: one that cannot take effect.
        """
        defaults = {field.name: field.default for field in fields(pipeline)}
        for name in cls.special:
            value = getattr(pipeline, name)
            if name not in cls.options and value not in (defaults[name], None):
                raise ValueError(f'{name}={value!r} has no effect on neurons of kind {pipeline.neuron!r}: omit it')

    @classmethod
    def for_levels(cls, pipeline, levels: int) -> dict:
        """The choices with which neurons can emit so many different values in one step, zero included.

        Raises:
            ValueError: they cannot.
        """
        raise ValueError(f'levels has no effect on neurons of kind {pipeline.neuron!r}: omit it')

    @classmethod
    def of(cls, pipeline, time_steps: int) -> 'NeuronModel':
        """The model that a :class:`mmsnn.Pipeline` describes, for T steps."""
        return cls()

    def under(self, ceiling: float, activation: nn.Module | None = None) -> 'NeuronModel':
        """The same for this activation, or for a ReLU with this largest value, which may be infinite."""
        return self

    @property
    def lowest(self) -> int:
        """The least that a neuron emits in one time step, in units of h: 0, or negative for signed spikes."""
        return 0

    @property
    def highest(self) -> int:
        """The most that a neuron emits in one time step, in units of h."""
        return 1

    @property
    def peak(self) -> float:
        """The mean output over time (differential coding: sum) up to which thresholds are chosen, in units of h."""
        return 1.

    @property
    def bound(self) -> float:
        """The largest mean output over time (differential coding: sum) that a neuron can have, in units of h."""
        return self.peak

    @property
    def values(self) -> int:
        """How many different values a neuron can emit in one time step, zero included: its levels per step."""
        return self.highest - self.lowest + 1

    def levels(self, time_steps: int) -> int:
        """How many values above zero the mean output over T steps can have, evenly spaced up to ``peak``."""
        return time_steps

    def start(self, potential: Tensor, time_steps: int) -> State:
        """The state before the first step; its first tensor is the membrane potential, (N, ...)."""
        return (potential,)

    def storage(self, time_steps: int) -> tuple[torch.dtype | None, ...]:
        """In which type a simulation of T steps may hold each tensor of the state; None: in that of the potential."""
        return (None,)

    def at(self, step: Tensor | float, time_steps: int) -> 'NeuronModel':
        """The same for one of the steps 0 to T - 1, where what neurons do depends on it."""
        return self

    def step(self, current: Tensor, bias: Tensor, state: State, threshold: Tensor,
             time_steps: int) -> tuple[Tensor, State]:
        """Advance by one time step.

        Args:
            current: input current c of this step, (N, ...).
            bias: additional current b, broadcastable.
            state: before the step, all of the type of the current. Not changed.
            threshold: h, broadcastable, positive.
            time_steps: T, the number of steps in all.

        Returns:
            The spikes, each with its value in the units of the current, (N, ...), and the state after the step.
        """
        raise NotImplementedError

    def step_in_place(self, current: Tensor, bias: Tensor, state: State, threshold: Tensor, time_steps: int,
                      spikes: Tensor) -> None:
        """As :meth:`step`, the new state in the place of the old one and the spikes written to ``spikes``, (N, ...).

        The same numbers. A kind of neurons may have its own where that takes fewer passes over memory.
        """
        fired, after = self.step(current, bias, state, threshold, time_steps)
        for target, value in zip((spikes, *state), (fired, *after)):
            target.copy_(value)

    def rate(self, current: Tensor, threshold: Tensor | float, time_steps: int, potential: Tensor | float) -> Tensor:
        """The mean output over T steps of a constant current, in closed form [Eq. 17].

        Args:
            current: z, bias included, (N, ...).
            threshold: h, broadcastable.
            time_steps: T.
            potential: v(0), broadcastable.
        """
        raise NotImplementedError

    def thresholds(self, histogram: ActivationHistogram, pipeline, time_steps: int) -> Tensor:
        """The thresholds that a pipeline chooses for a layer with these activations; (C,), or (1,) for the layer."""
        rule = 'max' if pipeline.threshold == 'current' else pipeline.threshold  # currents are known on the walk only
        largest = choose_threshold(histogram, rule, self.levels(time_steps), pipeline.channel_wise, pipeline.rounding)
        return largest / self.peak

    def half_level(self, threshold: Tensor, time_steps: int) -> Tensor:
        """Half of the charge that raises the mean output by a level: turns ClipFloor into ClipRound [section 4.3]."""
        return threshold * (self.peak * time_steps / (2 * self.levels(time_steps)))

    def __repr__(self) -> str:
        chosen = [f'{field.name}={getattr(self, field.name)!r}' for field in fields(self)
                  if getattr(self, field.name) != field.default]
        return f'{type(self).__name__}({", ".join(chosen)})'


def half(levels: int) -> int:
    """How many sizes spikes of either sign have where neurons can emit so many values.

    Raises:
        ValueError: it is no whole number.
    """
    if levels < 3 or levels % 2 == 0:
        raise ValueError(f'spikes of either sign have 3, 5, 7 ... levels a step, not {levels}')
    return levels // 2


def advance(model: NeuronModel, currents: Tensor | Sequence[Tensor], bias: Tensor | Sequence[Tensor], state: State,
            threshold: Tensor, time_steps: int,
            first: Tensor | float = 0.) -> tuple[list[Tensor], list[Tensor], State]:
    """Let neurons take the K steps of ``currents``, one after the other; the time loop of one layer.

    Args:
        model: their kind.
        currents: K currents, each (N, ...).
        bias: K of them, or one tensor for all steps, broadcastable.
        state: before the first step.
        threshold: h, broadcastable.
        time_steps: T.
        first: the number of the first of the K steps, from 0.

    Returns:
        The K steps' spikes, what each step hands on, and the state after the last.
    """
    spikes, handed_on = [], []
    for step, current in enumerate(currents):
        spike, state = model.at(first + step, time_steps).step(
            current, bias if isinstance(bias, Tensor) else bias[step], state, threshold, time_steps)
        spikes.append(spike)
        handed_on.append(spike if model.coding == 'rate' else state[0])
    return spikes, handed_on, state


def count_spikes(spikes: Tensor, threshold: Tensor) -> Tensor:
    """Count events, and spikes by size: one of k times the threshold is one event, and k by size; (2,), float64.

    Args:
        spikes: (..., C, H, W) or any other shape, not 0-d.
        threshold: broadcastable.
    """
    number = (spikes.float() / threshold).round().abs()
    return torch.stack([(number > 0).float().sum(-1).double().sum(), number.sum(-1).double().sum()])


def per_channel(value: Tensor, x: Tensor, axis: int = 1) -> Tensor:
    """Shape a (1,) or (C,) value so that it broadcasts along the channels of ``x``, (N, C, ...), or last (axis -1)."""
    return value.view(-1, *[1] * (x.ndim - 2)) if value.ndim == 1 and axis == 1 else value


def with_channels(x: Tensor) -> Tensor:
    """Values of neurons, (N, C, ...), as they are; of one neuron for each image, (N,), as one channel, (N, 1)."""
    return x.unsqueeze(-1) if x.ndim < 2 else x


def by_channel(x: Tensor, axis: int) -> Tensor:
    """Values of neurons, (N, C, ...), with the channels at an axis, or (N,), channel after channel: (C, values)."""
    return with_channels(x).movedim(axis, 0).flatten(1)


NEURONS: dict[str, type[NeuronModel]] = {}
"""Kinds of neurons by the name that :class:`mmsnn.Pipeline` gives as ``neuron``; to add one, see docs/extending.md."""
