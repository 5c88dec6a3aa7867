"""One layer of neurons as a module: what calibration sets, and what a checkpoint holds."""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .integrate_and_fire import FiringRule
from .model import NeuronModel, State, advance, count_spikes, per_channel


def activate(x: Tensor, ceiling: float, activation: nn.Module | None) -> Tensor:
    """The activation that a layer of neurons stands for: another one, or ``clip(x, 0, ceiling)``."""
    return x.clamp(0., ceiling) if activation is None else activation(x)


class IFNeuron(nn.Module):
    """The state of one layer of integrate-and-fire neurons: one instance per ReLU call site of the ANN.

    Called as a module it is the activation it replaced, ``clip(x, 0, ceiling)``, so that the converted graph
    called directly is still the (BN-folded) ANN. What the neurons do in time is the business of ``rule``.

    Args:
        ceiling: largest value of the replaced activation: infinite for ReLU, 6 for ReLU6.
        activation: the activation itself, where it is another one.

    Attributes:
        channel_axis: the dimension of channels: 1 or, as behind linear layers on sequences, -1.
        rule: how the neurons fire and reset. It comes from the pipeline, and after loading from the settings of the
            network.
        time_steps: T, which bounds the spike count where the rule counts.
        recorders: called with how many events there were and how many spikes by size (a burst of k as k), where
            somebody counts them.

    Buffers (all float, shape (1,) for one value per layer or (C,) per channel):
        threshold: firing threshold h and value of a spike. NaN until thresholds have been chosen.
        bias: current added at every step, on top of the convolution's own bias; also (T, C), one for each step.
        initial_potential: v(0); also (C, H, W) when calibrated per position.
    """

    threshold: Tensor
    bias: Tensor
    initial_potential: Tensor

    def __init__(self, ceiling: float = math.inf, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.activation = activation
        self.channel_axis = 1
        self.rule: NeuronModel = FiringRule()
        self.time_steps = 1
        self.recorders: list[Callable[[float, float], None]] = []
        self.register_buffer('threshold', torch.full((1,), math.nan))
        self.register_buffer('bias', torch.zeros(1))
        self.register_buffer('initial_potential', torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return activate(x, self.ceiling, self.activation)

    def per_channel(self, value: Tensor, x: Tensor) -> Tensor:
        """Shape one of the buffers so that it broadcasts with ``x``, (N, ...)."""
        return per_channel(value, x, self.channel_axis)

    def start(self, current: Tensor) -> State:
        """Return the state before the first step for one step's current, shape (N, ...).

        Raises:
            ValueError: the initial potential is per position and was calibrated for another image size.
        """
        initial = self.per_channel(self.initial_potential, current)
        if self.initial_potential.ndim > 1 and initial.shape != current.shape[1:]:
            raise ValueError(
                f'the initial potential was calibrated per position for feature maps of {tuple(initial.shape)}, but '
                f"this input gives {tuple(current.shape[1:])}. Use images of the calibrated size, or calibrate with "
                "potential='channel' (one value per channel), which serves every size.")
        potential = initial.expand(current.shape).to(current.dtype, copy=True).contiguous()
        return self.rule.start(potential, self.time_steps)

    def fire(self, currents: Tensor, state: State, start: int = 0) -> tuple[Tensor, State]:
        """Advance by the K steps of ``currents``, shape (K, N, ...), from step ``start`` on.

        ``currents`` are those of each step or, for neurons with differential coding, their sums up to each step.

        Returns:
            Spikes, shape (K, N, ...), and the state after the last step.
        """
        threshold = self.per_channel(self.threshold, currents[0])
        bias: Tensor | Sequence[Tensor] = self.per_channel(self.bias, currents[0])
        if self.bias.ndim > 1:
            bias = [self.per_channel(value, currents[0]) for value in self.bias[start:start + len(currents)]]
        if self.rule.coding == 'differential':
            assert isinstance(bias, Tensor)  # one for each step is a choice of rate coding
            currents = self(currents + bias)
        spikes, _, state = advance(self.rule, currents, bias, state, threshold, self.time_steps, float(start))
        fired = torch.stack(spikes)
        if self.recorders:
            self.record(count_spikes(fired, threshold))
        return fired, state

    def record(self, counts: Tensor) -> None:
        """Tell the recorders how many events and spikes there were, (2,)."""
        for record in self.recorders:
            record(*counts.tolist())

    @property
    def mean_bias(self) -> Tensor:
        """The bias, averaged over time where each step has its own; shape (1,) or (C,)."""
        return self.bias.mean(0) if self.bias.ndim > 1 else self.bias

    def rate(self, current: Tensor) -> Tensor:
        """What a constant current is turned into, in closed form: the firing rate [Eq. 17]; shape (N, ...)."""
        threshold, bias, initial = (self.per_channel(value, current) for value in (
            self.threshold, self.mean_bias, self.initial_potential))
        driven = current + bias
        return self.rule.rate(self(driven) if self.rule.coding == 'differential' else driven, threshold,
                              self.time_steps, initial)

    @torch.inference_mode(False)  # what is made here is to be changed later
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # A buffer's shape says how finely it was calibrated, which a fresh neuron cannot know: take the stored one.
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        parts = [repr(self.rule), f'threshold={span(self.threshold)}']
        if self.activation is not None:
            parts.append(f'activation={self.activation!r}')
        elif self.ceiling < math.inf:
            parts.append(f'ceiling={self.ceiling:g}')
        return ', '.join(parts)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.extra_repr()})'  # one line, also with an activation


def span(threshold: Tensor) -> str:
    """The range of thresholds in words."""
    if threshold.isnan().any():
        return 'not chosen'
    low, high = threshold.min().item(), threshold.max().item()
    return f'{low:.3g}' if low == high else f'{low:.3g} to {high:.3g}'
