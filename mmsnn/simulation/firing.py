"""A layer of neurons within a chunk of time steps."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..neurons.layer import IFNeuron
from ..neurons.model import State, advance, count_spikes, per_channel


class Firing(nn.Module):
    """A layer of neurons that takes K steps; see :func:`mmsnn.neurons.model.advance`.

    Args:
        neuron: the layer.
        steps: K.
        varies: whether its current does, in time.
        dtype: of the spikes; thresholds are rounded to it. None leaves both as they are.
        record: whether to count events and spikes.
    """

    threshold: Tensor
    bias: Tensor

    def __init__(self, neuron: IFNeuron, steps: int, varies: bool, dtype: torch.dtype | None,
                 record: bool = False) -> None:
        super().__init__()
        self.record = record
        self.ceiling, self.activation, self.axis = neuron.ceiling, neuron.activation, neuron.channel_axis
        self.model, self.time_steps = neuron.rule, neuron.time_steps
        self.steps, self.varies, self.dtype = steps, varies, dtype
        threshold = neuron.threshold if dtype is None else neuron.threshold.to(dtype).float()
        self.register_buffer('threshold', threshold.clone())
        self.register_buffer('bias', neuron.bias.clone())

    def forward(self, current: Tensor, bias: Tensor | None, potential: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Fire.

        Args:
            current: (K, N, ...), or (N, ...) where it does not vary or K is 1.
            bias: of each of the K steps, (K, C), where steps have biases of their own.
            potential, *others: state before the first step, in the types of :meth:`NeuronModel.storage`.

        Returns:
            What is handed on, (K, N, ...), or (N, ...) where K is 1; the tensors of the state after the last step; and,
            where they are recorded, the numbers of events and spikes, (2,).
        """
        currents: Sequence[Tensor] = (current.unbind(0) if self.steps > 1 and self.varies else [current] * self.steps)
        constant: Tensor | list[Tensor] = per_channel(self.bias, potential, self.axis) if bias is None else [
            per_channel(each, potential, self.axis) for each in bias]
        state: State = (potential, *(value.to(potential.dtype) for value in others))
        threshold = per_channel(self.threshold, potential, self.axis)
        if self.model.coding == 'differential' and isinstance(constant, Tensor):
            currents = [self.activate(current.to(potential.dtype) + constant) for current in currents]
        spikes, handed_on, state = advance(self.model, currents, constant, state, threshold, self.time_steps)
        counts = [torch.stack([count_spikes(s, threshold) for s in spikes]).sum(0)] if self.record else []
        if self.dtype is not None:
            handed_on = [value.to(self.dtype) for value in handed_on]
        stored = (value.to(before.dtype) for value, before in zip(state, (potential, *others)))
        return (join(handed_on) if self.steps > 1 else handed_on[0], *stored, *counts)

    def activate(self, x: Tensor) -> Tensor:
        """The activation that the neurons stand for."""
        return x.clamp(0., self.ceiling) if self.activation is None else self.activation(x)


def join(values: list[Tensor]) -> Tensor:
    """Values of one step each, (N, ...), as (K, N, ...), keeping how they lie in memory."""
    if not values[0].ndim:
        return torch.stack(values)
    return torch.cat(values).unflatten(0, (len(values), -1))
