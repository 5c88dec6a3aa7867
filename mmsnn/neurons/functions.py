"""Neurons of a rate code that stand for any activation: their mean over time is f of the mean current."""
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .model import NEURONS, NeuronModel, State, half
from .rates import straight_through_floor


@dataclass(frozen=True, repr=False)
class RateFunction(NeuronModel):
    """Emits what the activation of the mean current lacks so far, in spikes of either sign, up to m a step.

    With S(t) the sum of the currents and biases of the first t steps, f the activation, h the threshold, and n spikes
    emitted so far, negative ones subtracted::

        k = clip(round(t f(S(t) / t) / h) - n, -m, m);    s = k h;    n = n + k

    For f = ReLU, where ``t f(S/t) = f(S)``, this is the signed neuron with memory of :class:`mmsnn.FiringRule` that
    rounds and is not clipped. For any f the mean of what is emitted, h n / T, is in the end f of the mean current to
    within h / (2 T), whatever the order in which currents have come.

    Attributes:
        max_spikes: m, the largest number of spikes (or negative spikes) in one time step.
        max_rate: r, the firing rate in spikes per step up to which thresholds are chosen.
        ceiling: the largest value of the activation where ``activation`` is None: infinite for ReLU.
        activation: f, where it is no ReLU.
        after: t, the number of steps taken with the next one, see :meth:`at`.
    """

    max_spikes: int = 1
    max_rate: int = 1
    ceiling: float = field(default=math.inf, compare=False)  # of the layer, not of the kind
    activation: nn.Module | None = field(default=None, compare=False)
    after: Tensor | float = 1.

    closed_form = True
    any_activation = True
    options = ('max_spikes', 'max_rate', 'rounding')

    @classmethod
    def check(cls, pipeline) -> None:
        super().check(pipeline)
        if pipeline.threshold in ('current', 'balanced'):
            raise ValueError(f'threshold={pipeline.threshold!r} has no effect on neurons of kind {pipeline.neuron!r}: '
                             'it follows currents, and activations need not be currents')
        if pipeline.max_spikes is None:
            raise ValueError(f'max_spikes must be a number for neurons of kind {pipeline.neuron!r}')

    @classmethod
    def for_levels(cls, pipeline, levels: int) -> dict:
        return dict(max_spikes=half(levels), max_rate=half(levels))

    @classmethod
    def of(cls, pipeline, time_steps: int) -> 'RateFunction':
        return cls(pipeline.max_spikes, pipeline.max_rate)

    def under(self, ceiling: float, activation: nn.Module | None = None) -> 'RateFunction':
        return replace(self, ceiling=ceiling, activation=activation)

    @property
    def lowest(self) -> int:
        return -self.max_spikes

    @property
    def highest(self) -> int:
        return self.max_spikes

    @property
    def peak(self) -> float:
        return self.max_rate

    @property
    def bound(self) -> float:
        return self.max_spikes

    def levels(self, time_steps: int) -> int:
        return self.max_rate * time_steps

    def start(self, potential: Tensor, time_steps: int) -> State:
        return potential, torch.zeros_like(potential)

    def storage(self, time_steps: int) -> tuple[torch.dtype | None, ...]:
        return None, None

    def at(self, step: Tensor | float, time_steps: int) -> 'RateFunction':
        return replace(self, after=step + 1)

    def step(self, current: Tensor, bias: Tensor, state: State, threshold: Tensor,
             time_steps: int) -> tuple[Tensor, State]:
        total = state[0] + current + bias
        wanted = self.activate(total / self.after) * self.after / threshold
        number = (torch.floor(wanted + .5) - state[1]).clamp(-self.max_spikes, self.max_spikes)
        return number * threshold, (total, state[1] + number)

    def rate(self, current: Tensor, threshold: Tensor | float, time_steps: int, potential: Tensor | float) -> Tensor:
        level = threshold / time_steps
        most = self.max_spikes * time_steps
        return level * straight_through_floor(self.activate(current) / level + .5).clamp(-most, most)

    def activate(self, current: Tensor) -> Tensor:
        """The activation f."""
        return current.clamp(0., self.ceiling) if self.activation is None else self.activation(current)


NEURONS['rate-function'] = RateFunction
