"""A layer of neurons within a chunk of time steps."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..neurons.layer import IFNeuron, activate
from ..neurons.model import State, advance, count_spikes, per_channel

TILE = 2 ** 17  # neurons that take their steps together where caches matter: what they need fits into a cache


class Firing(nn.Module):
    """A layer of neurons that takes K steps; see :func:`mmsnn.neurons.model.advance`.

    Args:
        neuron: the layer.
        steps: K.
        varies: whether its current does, in time.
        dtype: of the spikes; thresholds are rounded to it. None leaves both as they are.
        record: whether to count events and spikes.
        tiled: whether to let some channels after the other take all their steps, and to change the state in place:
            what is computed on the way then stays in the processor's cache. A compiler does better by itself.
    """

    threshold: Tensor
    bias: Tensor

    def __init__(self, neuron: IFNeuron, steps: int, varies: bool, dtype: torch.dtype | None,
                 record: bool = False, tiled: bool = False) -> None:
        super().__init__()
        self.record, self.tiled = record, tiled
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
        if self.tiled and self.axis == 1 and potential.ndim > 1 and potential.numel() > TILE:
            return self._in_tiles(currents, constant, state, threshold)
        handed_on, state, counts = self._advance(currents, constant, state, threshold)
        if self.dtype is not None:
            handed_on = [value.to(self.dtype) for value in handed_on]
        stored = (value.to(before.dtype) for value, before in zip(state, (potential, *others)))
        return (join(handed_on) if self.steps > 1 else handed_on[0], *stored, *counts)

    def _advance(self, currents: Sequence[Tensor], constant: Tensor | list[Tensor], state: State,
                 threshold: Tensor) -> tuple[list[Tensor], State, list[Tensor]]:
        if self.model.coding == 'differential' and isinstance(constant, Tensor):
            currents = [activate(current.to(state[0].dtype) + constant, self.ceiling, self.activation)
                        for current in currents]
        spikes, handed_on, state = advance(self.model, currents, constant, state, threshold, self.time_steps)
        counts = [torch.stack([count_spikes(s, threshold) for s in spikes]).sum(0)] if self.record else []
        return handed_on, state, counts

    def _in_tiles(self, currents: Sequence[Tensor], constant: Tensor | list[Tensor], state: State,
                  threshold: Tensor) -> tuple[Tensor, ...]:
        potential, counts = state[0], []
        channels = potential.shape[1]
        width = max(1, TILE * channels // potential.numel())
        result = potential.new_empty(self.steps, *potential.shape)
        for start in range(0, channels, width):
            tile = slice(start, start + width)

            def cut(value: Tensor, tile: slice = tile) -> Tensor:
                if value.ndim == potential.ndim:  # a map; otherwise one value for each channel, or for all
                    return value[:, tile]
                return value[tile] if value.shape[0] == channels else value

            handed_on, after, counted = self._advance(
                [cut(current).to(potential.dtype) for current in currents],
                cut(constant) if isinstance(constant, Tensor) else [cut(value) for value in constant],
                tuple(cut(value) for value in state), cut(threshold))
            for value, target in zip((*handed_on, *after), (*result, *state)):
                target[:, tile] = value
            counts += counted
        totals = [torch.stack(counts).sum(0)] if self.record else []
        return (result if self.steps > 1 else result[0], *state, *totals)


def join(values: list[Tensor]) -> Tensor:
    """Values of one step each, (N, ...), as (K, N, ...), keeping how they lie in memory."""
    if not values[0].ndim:
        return torch.stack(values)
    return torch.cat(values).unflatten(0, (len(values), -1))
