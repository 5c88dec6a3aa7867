"""A layer of neurons within a chunk of time steps."""
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..neurons.differential import Differential
from ..neurons.layer import IFNeuron, activate
from ..neurons.model import State, advance, count_spikes, per_channel
from .codes import Code

TILE = 2 ** 17  # neurons that take their steps together where caches matter: what they need fits into a cache


class Firing(nn.Module):
    """A layer of neurons that takes K steps; see :func:`mmsnn.neurons.model.advance`.

    Args:
        neuron: the layer.
        steps: K.
        varies: whether its current does, in time.
        dtype: of the spikes; thresholds are rounded to it. None leaves both as they are.
        record: whether to count events and spikes.
        tiled: whether to change the state in place and, in large layers, let some channels after the other take all
            their steps: what is computed on the way then stays in the processor's cache. A compiler does better by
            itself.
        code: hand on bytes, coded so, instead of values.
    """

    threshold: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, neuron: IFNeuron, steps: int, varies: bool, dtype: torch.dtype | None,
                 record: bool = False, tiled: bool = False, code: Code | None = None) -> None:
        super().__init__()
        self.record, self.tiled, self.code = record, tiled, code
        self.ceiling, self.activation, self.axis = neuron.ceiling, neuron.activation, neuron.channel_axis
        # A PReLU with a slope for each channel cannot be asked for some of them.
        learned = [] if self.activation is None else [*self.activation.parameters(), *self.activation.buffers()]
        self.by_channel = any(value.numel() > 1 for value in learned)
        self.model, self.time_steps = neuron.rule, neuron.time_steps
        self.steps, self.varies, self.dtype = steps, varies, dtype
        threshold = neuron.threshold if dtype is None else neuron.threshold.to(dtype).float()
        self.register_buffer('threshold', threshold.clone())
        self.register_buffer('scale', 1 / threshold)
        self.register_buffer('bias', neuron.bias.clone())

    def forward(self, current: Tensor | list[Tensor], bias: Tensor | None, first: Tensor, *state: Tensor) -> tuple:
        """Fire.

        Args:
            current: (K, N, ...), or K currents of (N, ...); one of (N, ...) where it does not vary or K is 1.
            bias: of each of the K steps, (K, C), where steps have biases of their own.
            first: the number of the first step, a scalar.
            *state: before the first step, in the types of :meth:`NeuronModel.storage`; nothing where these are all
                steps of neurons that send changes as bytes.

        Returns:
            What is handed on, (K, N, ...), or (N, ...) where K is 1 (bytes: a list of K such); the tensors of the state
            after the last step; and, where they are recorded, the numbers of events and spikes, (2,).
        """
        return self.fire(self.threshold, self.bias, current, bias, first, *state)

    def fire(self, thresholds: Tensor, biases: Tensor, current: Tensor | list[Tensor], bias: Tensor | None,
             first: Tensor, *state: Tensor) -> tuple:
        """Fire with thresholds and biases, (1,) or (C,), that may be those of another layer which is alike."""
        currents: Sequence[Tensor]
        if isinstance(current, list):
            currents = current
        else:
            currents = current.unbind(0) if self.steps > 1 and self.varies else [current] * self.steps
        like = currents[0]
        constant: Tensor | list[Tensor] = per_channel(biases, like, self.axis) if bias is None else [
            per_channel(each, like, self.axis) for each in bias]
        threshold = per_channel(thresholds, like, self.axis)
        if self.tiled:
            return self._in_tiles(currents, constant, first, state, threshold)
        if self.code is not None:
            return self._fire_codes(currents, constant, first, state, threshold)
        before: State = (state[0], *(value.to(state[0].dtype) for value in state[1:]))
        handed_on, after, counts = self._advance(currents, constant, first, before, threshold)
        if self.dtype is not None:
            handed_on = [value.to(self.dtype) for value in handed_on]
        stored = (value.to(given.dtype) for value, given in zip(after, state))
        return (join(handed_on) if self.steps > 1 else handed_on[0], *stored, *counts)

    def _fire_codes(self, currents: Sequence[Tensor], constant: Tensor | list[Tensor], first: Tensor, state: State,
                    threshold: Tensor) -> tuple:
        """The same, handing on a list of bytes."""
        assert self.code is not None
        if self.model.coding == 'differential':
            return self._send_codes(currents, constant, first, state, threshold)
        kinds = [value.dtype for value in state]
        state = (state[0].to(threshold.dtype), *(value.to(threshold.dtype) for value in state[1:]))
        spikes, handed_on, state = advance(self.model, currents, constant, state, threshold, self.time_steps, first)
        codes = [self.code.encode(value, threshold) for value in handed_on]
        counts = [torch.stack([count_spikes(s, threshold) for s in spikes]).sum(0)] if self.record else []
        return (codes, *(value.to(kind) for value, kind in zip(state, kinds)), *counts)

    def _send_codes(self, currents: Sequence[Tensor], constant: Tensor | list[Tensor], first: Tensor, state: State,
                    threshold: Tensor) -> tuple:
        """Neurons that send changes: what they have sent is all that they remember, a byte, or 0 before step one."""
        code = self.code
        assert code is not None and isinstance(constant, Tensor)
        sent = state[0].to(threshold.dtype) - code.zero_point if state else threshold.new_zeros(())
        codes, changes = [], []
        for number, current in enumerate(currents):
            value = activate(current.to(threshold.dtype) + constant, self.ceiling, self.activation)
            target = code.target(value * self.scale.view_as(threshold))
            rule = self.model.at(first + number, self.time_steps)
            assert isinstance(rule, Differential)
            change = code.change(rule, target - sent)
            sent = sent + change
            changes.append(change)
            codes.append((sent + code.zero_point).to(torch.uint8))
        one = torch.ones_like(threshold)
        counts = [torch.stack([count_spikes(change, one) for change in changes]).sum(0)] if self.record else []
        return (codes, *(codes[-1:] if state else ()), *counts)

    def _advance(self, currents: Sequence[Tensor], constant: Tensor | list[Tensor], first: Tensor, state: State,
                 threshold: Tensor) -> tuple[list[Tensor], State, list[Tensor]]:
        if self.model.coding == 'differential' and isinstance(constant, Tensor):
            currents = [activate(current.to(state[0].dtype) + constant, self.ceiling, self.activation)
                        for current in currents]
        spikes, handed_on, state = advance(self.model, currents, constant, state, threshold, self.time_steps, first)
        counts = [torch.stack([count_spikes(s, threshold) for s in spikes]).sum(0)] if self.record else []
        return handed_on, state, counts

    def _in_tiles(self, currents: Sequence[Tensor], constant: Tensor | list[Tensor], first: Tensor, state: State,
                  threshold: Tensor) -> tuple[Tensor, ...]:
        potential, counts, differential = state[0], [], self.model.coding == 'differential'
        result = potential.new_empty(self.steps, *potential.shape)
        for cut in self._tiles(potential):
            states, height = tuple(cut(value) for value in state), cut(threshold)
            for number, (current, target) in enumerate(zip(currents, result)):
                bias = cut(constant if isinstance(constant, Tensor) else constant[number])
                current, spikes = cut(current).to(potential.dtype), cut(target)
                if differential:
                    current = activate(current + bias, self.ceiling, self.activation)
                self.model.at(first + number, self.time_steps).step_in_place(current, bias, states, height,
                                                                            self.time_steps, spikes)
                if self.record:
                    counts.append(count_spikes(spikes, height))
                if differential:
                    spikes.copy_(states[0])
        totals = [torch.stack(counts).sum(0)] if self.record else []
        return (result if self.steps > 1 else result[0], *state, *totals)

    def _tiles(self, like: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """For each tile of a layer, what cuts its part out of a map, (N, C, ...), or of one value for each channel."""
        if self.axis != 1 or like.ndim < 2 or like.numel() <= TILE or self.by_channel:
            yield lambda value: value
            return
        channels = like.shape[1]
        width = max(1, TILE * channels // like.numel())
        for start in range(0, channels, width):
            def cut(value: Tensor, tile: slice = slice(start, start + width)) -> Tensor:
                if value.ndim == like.ndim:
                    return value[:, tile]
                return value[tile] if value.shape[0] == channels else value  # one for all channels
            yield cut


def join(values: list[Tensor]) -> Tensor:
    """Values of one step each, (N, ...), as (K, N, ...), keeping how they lie in memory."""
    if not values[0].ndim:
        return torch.stack(values)
    return torch.cat(values).unflatten(0, (len(values), -1))
