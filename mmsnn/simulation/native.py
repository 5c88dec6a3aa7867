"""Neurons that send changes as bytes, in one loop with the convolutions before them: bytes in, bytes out.

What a layer of such neurons receives is a sum of terms: convolutions of other layers' bytes, these bytes themselves
(where a block's input is added to its output), or values of any kind. In units of half a threshold::

    target = round(sum(scale * term) + bias)

Between two layers memory sees nothing but bytes, all steps of a position are taken while its sums are in a cache, and
oneDNN's convolutions, which would write currents of four bytes, are not needed. ``native.cpp`` does it, compiled once
for a machine in two seconds; without a compiler, or on other processors, the same is computed operation by operation.
"""
import ctypes
import functools
import itertools
import operator
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..neurons.differential import Differential
from ..neurons.layer import IFNeuron
from .codes import Code, Decoder
from .integers import convolved, has_integers, round_weights
from .machine_code import library
from .operations import source_of
from .plan import Plan

CHANNELS = 64  # of a block: what channels have is padded to a multiple
NOTHING = torch.zeros(0, dtype=torch.int64)
_DENSE, _DEPTHWISE, _CODES, _VALUES = range(4)
_ADDITIONS = {operator.add, operator.iadd, torch.add, 'add'}


class Term(NamedTuple):
    """A summand of a layer's current: what is read, and the convolution that weights it, if any."""

    node: fx.Node
    conv: fx.Node | None = None


def native_layers(plan: Plan, layers: Mapping[fx.Node, fx.Node], coded: Mapping[fx.Node, Code],
                  dimensions: Mapping[fx.Node, int]) -> tuple[dict[fx.Node, list[Term]], set[fx.Node]]:
    """The layers of neurons that ``native.cpp`` computes, each with its terms, and the nodes that come to lie within.

    Args:
        plan: what is computed.
        layers: convolutions of bytes, each with the layer of neurons that it reads.
        coded: the layers of neurons that hand on bytes.
        dimensions: how many dimensions the tensor of each node has at one step.
    """
    found: dict[fx.Node, list[Term]] = {}
    within: set[fx.Node] = set()

    def terms(node: fx.Node) -> Iterator[Term]:
        alone = sum(user in plan.varies for user in node.users) == 1 and node not in plan.targets
        conv: Any = plan.modules.get(node)
        if alone and node in layers and (conv.groups == 1 or conv.groups == conv.in_channels == conv.out_channels):
            within.add(node)
            yield Term(layers[node], node)
        elif alone and node.target in _ADDITIONS and len(node.args) == len(node.all_input_nodes) == 2 \
                and not node.kwargs and node in plan.varies and all(
                    dimensions.get(arg) == 4 for arg in node.all_input_nodes):
            within.add(node)
            for arg in node.all_input_nodes:
                yield from terms(arg)
        else:
            yield Term(node)

    for node, code in coded.items():
        neuron = plan.modules[node]
        linear = neuron.activation is None or type(neuron.activation) is nn.Identity
        if code.halves and linear and neuron.bias.ndim == 1 and dimensions[node] == 4 and neuron.threshold.dtype \
                == torch.float32 and neuron.threshold.device.type == 'cpu' and library():
            found[node] = list(terms(source_of(node)))
    return found, within


class _Term(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ('maps', 'weight', 'start', 'scale')),
                *((name, ctypes.c_int64) for name in ('kind', 'height', 'width', 'channels', 'depth', 'zero_point')),
                *((name, ctypes.c_int64 * 2) for name in ('kernel', 'stride', 'padding', 'dilation'))]


class _Layer(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in (
                    'terms', 'bias', 'largest', 'changes', 'sent', 'codes', 'counts')),
                *((name, ctypes.c_int64) for name in (
                    'number', 'steps', 'images', 'height', 'width', 'channels', 'zero_point', 'lowest', 'threads'))]


class NativeLayer(nn.Module):
    """A layer of neurons that takes K steps, with the terms of its current.

    Args:
        neuron: the layer.
        code: of what it hands on.
        terms: of its current: for each the layer of neurons that it comes from and the code of that, or None twice,
            and the convolution between, or None.
        steps: K.
        record: whether to count events and spikes.
    """

    def __init__(self, neuron: IFNeuron, code: Code,
                 terms: list[tuple[IFNeuron | None, Code | None, nn.Conv2d | None]], steps: int, record: bool) -> None:
        super().__init__()
        self.code, self.steps, self.record = code, steps, record
        self._neuron, self._given = [neuron], terms  # a list: its tensors are not this module's
        self._prepared: tuple[_Layer, Any, Tensor] | None = None
        self._held: list = []  # what pointers refer to
        self.number = next(_numbers)
        _LAYERS[self.number] = self

    def forward(self, first: Tensor, sent: Tensor | None, *maps: list[Tensor]) -> list[Tensor]:
        """Fire.

        Args:
            first: the number of the first step, a scalar.
            sent: the codes of what has been sent before, (N, C, H, W), or None before step one.
            *maps: of each term: what is read at each of the K steps, or once, (N, C_in, H, W).

        Returns:
            The codes of the K steps, (N, C, H, W), uint8, channels last, and the numbers of events and spikes, (2,).
        """
        if not torch.compiler.is_compiling() and not torch.autograd._profiler_enabled():  # which sees operations only
            return self.fire(first, sent, maps)
        return torch.ops.mmsnn.native_layer(first, sent, [map for each in maps for map in each],
                                            [len(each) for each in maps], self.number)

    def fire(self, first: Tensor, sent: Tensor | None, maps: Sequence[list[Tensor]]) -> list[Tensor]:
        shape = self.shape(maps)
        if self._prepared is None:
            self._prepared = self._prepare(shape[1])
        # Each call has its own: other threads may be computing with theirs.
        prepared, arranged, changes = self._prepared
        layer, terms = _Layer.from_buffer_copy(prepared), type(arranged).from_buffer_copy(arranged)
        layer.terms, size = ctypes.addressof(terms), ctypes.c_void_p * self.steps
        codes = [torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last) for _ in range(self.steps)]
        held: list = []  # what pointers refer to
        for term, each, (_, _, conv) in zip(terms, maps, self._given):
            if conv is None and each[0].shape != shape:
                each = [value.expand(shape) for value in each]
            elif conv is not None and convolved(conv, each[0]) != shape:  # added to a larger map
                if each[0].shape[2:] != (1, 1) or conv.kernel_size != (1, 1):
                    raise ValueError(f"dtype='int8': what {conv} gives of {tuple(each[0].shape)} is added to a larger "
                                     "map. Use dtype='bfloat16'")
                each = [value.expand(shape[0], -1, *shape[2:]) for value in each]
            if term.kind == _VALUES:  # integers too may be added
                each = [value.float() for value in each]
            each = [value.contiguous(memory_format=torch.channels_last) for value in each]
            term.height, term.width = each[0].shape[2:]
            pointers = size(*(value.data_ptr() for value in each * (self.steps // len(each))))
            term.maps = ctypes.addressof(pointers)
            held += [each, pointers]
        if sent is not None:
            sent = sent.contiguous(memory_format=torch.channels_last)
        pointers = size(*(value.data_ptr() for value in codes))
        layer.codes, layer.sent = ctypes.addressof(pointers), None if sent is None else sent.data_ptr()
        layer.changes = changes.data_ptr() + int(first) * changes.shape[1]
        counts = torch.zeros(2, dtype=torch.int64) if self.record else NOTHING
        layer.counts = counts.data_ptr() if self.record else None
        layer.images, layer.channels, layer.height, layer.width = shape
        layer.threads = torch.get_num_threads()
        if codes[0].numel():
            library().fire(ctypes.byref(layer))
        return [*codes, counts]

    def shape(self, maps: Sequence[list[Tensor]]) -> tuple[int, ...]:
        """Of the layer's neurons, (N, C, H, W)."""
        shapes = (each[0].shape if conv is None else convolved(conv, each[0])
                  for each, (_, _, conv) in zip(maps, self._given))
        return functools.reduce(lambda one, other: one if one == other else torch.broadcast_shapes(one, other), shapes)

    def _prepare(self, channels: int) -> tuple[_Layer, Any, Tensor]:
        """Arrange weights, and all that channels have, as native.cpp reads them: the layer, its terms, its changes."""
        (neuron,), code, rule = self._neuron, self.code, self._neuron[0].rule
        assert isinstance(rule, Differential)
        half = neuron.threshold.double() / 2
        bias = neuron.bias.double().expand(channels)
        terms = (_Term * len(self._given))()
        for term, (before, coded, conv) in zip(terms, self._given):
            scale = torch.ones(1, dtype=torch.float64) if before is None else before.threshold.double()
            term.kind, term.channels = _VALUES if before is None else _CODES, channels
            term.zero_point = 0 if coded is None else coded.zero_point
            if conv is not None and before is not None:
                term.kind, term.channels = _DENSE if conv.groups == 1 else _DEPTHWISE, conv.in_channels
                weight, factors = round_weights(conv.weight.detach(), before.threshold, conv.groups)
                scale = factors.double()
                bias = bias if conv.bias is None else bias + conv.bias.detach().double()
                for name in ('stride', 'padding', 'dilation'):
                    setattr(term, name, getattr(conv, name))
                term.kernel = tuple(conv.kernel_size)
                arranged = tiles(weight) if conv.groups == 1 else taps(weight)
                term.weight, term.depth = self._pointer(arranged), 64 * arranged.shape[1] if conv.groups == 1 else 0
                term.start = self._pointer(padded(-term.zero_point * weight.int().flatten(1).sum(1)).int())
            elif before is not None:
                bias = bias - term.zero_point * scale
            term.scale = self._pointer(padded((scale / half).expand(channels)).float())
        largest = torch.round(2 * torch.as_tensor(neuron.ceiling) / neuron.threshold.double() - .5)
        # What is sent for k halves and a quarter of difference, at each step.
        differences = torch.arange(128) / 2 + .25
        changes = torch.stack([rule.at(step, neuron.time_steps).nearest(differences).to(torch.uint8)
                               for step in range(neuron.time_steps)])
        layer = _Layer(
            number=len(terms), steps=self.steps, zero_point=code.zero_point, lowest=2 * code.low,
            bias=self._pointer(padded(bias / half - .5).float()),
            largest=self._pointer(padded(largest.clamp(max=2 * code.high).expand(channels)).float()))
        return layer, terms, changes

    def _pointer(self, value: Tensor) -> int:
        self._held.append(value.contiguous())
        return self._held[-1].data_ptr()


class NativeDecoder(Decoder):
    """The same, or written to ``values``, which lie in memory as the ANN's output."""

    def forward(self, codes: Tensor, values: Tensor | None = None) -> Tensor:
        if values is None:
            return super().forward(codes)
        torch.ops.mmsnn.decode(codes, self.threshold.flatten().expand(codes.shape[1]), self.code.zero_point, values)
        return values


def decode(codes: Tensor, threshold: Tensor, zero_point: int, values: Tensor) -> None:
    """Write codes, (N, C, H, W), as values, of the same shape and contiguous."""
    codes, threshold = codes.contiguous(memory_format=torch.channels_last), threshold.contiguous()
    images, channels, height, width = codes.shape
    library().decode(*(ctypes.c_void_p(value.data_ptr()) for value in (codes, threshold, values)), *map(
        ctypes.c_int64, (images, height * width, channels, zero_point, torch.get_num_threads())))


def padded(value: Tensor) -> Tensor:
    """A value for each channel, with zeros up to a multiple of a block's channels."""
    return F.pad(value, (0, -len(value) % CHANNELS))


def tiles(weight: Tensor) -> Tensor:
    """Weights of a convolution, (C_out, C_in, H, W), as products of bytes want them.

    Returns:
        (C_out / 16, H W C_in / 64, 16, 16, 4), padded with zeros: of 16 channels out and 64 weights, channels in last,
        four weights of each channel lie together.
    """
    rows = weight.permute(0, 2, 3, 1).flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % 64, 0, -len(rows) % CHANNELS))
    return rows.view(len(rows) // 16, 16, -1, 16, 4).permute(0, 2, 3, 1, 4).contiguous()


def taps(weight: Tensor) -> Tensor:
    """Weights of a convolution of each channel by itself, (C, 1, H, W), as (H W, C), int32, padded with zeros."""
    rows = weight.flatten(1).t().int()
    return F.pad(rows, (0, -rows.shape[1] % CHANNELS)).contiguous()


_numbers = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, NativeLayer] = weakref.WeakValueDictionary()


def _define() -> torch.library.Library:
    """An operation of torch's own: a compiler takes it as it is."""
    operation = torch.library.Library('mmsnn', 'FRAGMENT')
    operation.define('native_layer(Tensor first, Tensor? sent, Tensor[] maps, int[] each, int number) -> Tensor[]',
                     tags=(torch.Tag.pt2_compliant_tag,))

    def grouped(maps: list[Tensor], each: list[int]) -> list[list[Tensor]]:
        rest = iter(maps)
        return [list(itertools.islice(rest, count)) for count in each]

    def fire(first: Tensor, sent: Tensor | None, maps: list[Tensor], each: list[int], number: int) -> list[Tensor]:
        return _LAYERS[number].fire(first, sent, grouped(maps, each))

    operation.impl('native_layer', fire, 'CPU')
    operation.define('decode(Tensor codes, Tensor threshold, int zero_point, Tensor(a!) values) -> ()',
                     tags=(torch.Tag.pt2_compliant_tag,))
    operation.impl('decode', decode, 'CPU')
    torch.library.register_fake('mmsnn::decode', lambda *_: None, lib=operation)

    @torch.library.register_fake('mmsnn::native_layer', lib=operation)
    def _(first: Tensor, sent: Tensor | None, maps: list[Tensor], each: list[int], number: int) -> list[Tensor]:
        layer = _LAYERS[number]
        like = torch.empty(layer.shape(grouped(maps, each)), dtype=torch.uint8, device='cpu',
                           memory_format=torch.channels_last)
        counts = torch.empty(2 if layer.record else 0, dtype=torch.int64)
        return [*(torch.empty_like(like) for _ in range(layer.steps)), counts]

    return operation


_LIBRARY = _define() if has_integers() else None
