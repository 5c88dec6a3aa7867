"""The graph of a chunk, node by node: each at all steps at once, at one after the other, or as bytes."""
import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .codes import Code, Decoder
from .firing import Firing, join
from .folding import BROADCAST, MERGED, folding_of
from .integers import IntegerConvolution
from .native import NativeDecoder, NativeLayer
from .operations import is_max_pool, source_of
from .plan import evaluate, is_neuron

if TYPE_CHECKING:
    from .chunk import Chunk


class Kept(NamedTuple):
    """One tensor that a chunk takes over from the one before: the node it belongs to, what it is, and its number."""

    node: fx.Node
    kind: str  # 'neuron': of its state; 'sum': of an input; 'total': of what was put out; 'output': of a target
    number: int = 0


class Builder:
    """Copies the nodes of a plan into the graph of a chunk."""

    def __init__(self, chunk: 'Chunk') -> None:
        self.chunk, self.plan = chunk, chunk.plan
        self.steps, self.dtype = chunk.steps, chunk.dtype
        self.graph, self.root = fx.Graph(), nn.Module()
        # The value of a varying node: at all steps, (K, N, ...), and one by one; each is made of the other when needed.
        self.together: dict[fx.Node, fx.Node] = {}
        self.single: dict[fx.Node, list[fx.Node]] = {}
        self.constant: dict[fx.Node, fx.Node] = {}  # of a static one, in ``dtype``
        self.given: dict[fx.Node, fx.Node] = {}  # the same as it was
        self.codes: dict[fx.Node, list[fx.Node]] = {}  # what neurons hand on at each step, as bytes
        self.decoders: dict[fx.Node, str] = {}
        self.called: dict[str, str] = {}  # the network's own modules, by their names there
        self.counts: list[fx.Node] = []

    def build(self, record: bool, each_step: bool, in_place: bool) -> fx.GraphModule:
        chunk, graph = self.chunk, self.graph
        for node in chunk.static:
            given = graph.placeholder(f'static_{node.name}')
            self.constant[node] = given if self.dtype is None else graph.call_function(_cast, (given, self.dtype))
            self.given[node] = given
        for node in self.plan.sources:
            given = graph.placeholder(f'spikes_{node.name}')
            self.together[node] = given if self.steps > 1 else graph.call_function(_item, (given, 0))
        stepped = {node: graph.placeholder(f'bias_{node.name}') for node in chunk.stepped}
        first = graph.placeholder('first_step')
        kept = {entry: graph.placeholder(f'{entry.kind}{entry.number}_{entry.node.name}') for entry in chunk.kept}
        updates: dict[Kept, fx.Node] = {}

        def update(entry: Kept, value: fx.Node) -> None:
            updates[entry] = graph.call_method('copy_', (kept[entry], value)) if in_place else value

        for node in chunk.computed:
            if node in chunk.native:
                self._fire_natively(node, kept, update, first, record)
            elif is_neuron(node):
                self._fire(node, kept, update, stepped.get(node), first, record)
            elif node in self.chunk.running:
                self._run_analog(node, kept, update, first)
            else:
                self._copy(node)
        if not each_step:
            for node in chunk.targets:
                entry = Kept(node, 'output')
                if node in chunk.native and in_place:
                    graph.call_module(self.decoders[node], (self.codes[node][-1], kept[entry]))
                elif chunk.sums:
                    update(entry, self.at(node, self.steps - 1))
                else:
                    update(entry, graph.call_function(_add_steps, (kept[entry], self.value(node), self.steps > 1)))
        values = [self.value(node) if self.steps > 1 else graph.call_function(torch.unsqueeze, (self.value(node), 0))
                  for node in chunk.targets] if each_step else []
        graph.output((self.counts, values, [] if in_place else [updates[entry] for entry in chunk.kept]))
        return fx.GraphModule(self.root, graph)

    # The values of nodes

    def value(self, node: fx.Node) -> fx.Node:
        """The value at all steps, (K, N, ...), of a varying node; (N, ...) where K is 1."""
        if node not in self.together:
            steps = [self.at(node, step) for step in range(self.steps)]
            self.together[node] = self.graph.call_function(join, (steps,)) if self.steps > 1 else steps[0]
        return self.together[node]

    def at(self, node: fx.Node, step: int) -> fx.Node:
        """The value of any node at one step."""
        if node not in self.plan.varies:
            return self.once(node)
        if node in self.decoders:  # some of the steps are not asked for
            return self.graph.call_module(self.decoders[node], (self.codes[node][step],))
        if node not in self.single:
            value = self.together[node]
            self.single[node] = [value] if self.steps == 1 else [
                self.graph.call_function(_item, (value, index)) for index in range(self.steps)]
        return self.single[node][step]

    def once(self, node: fx.Node) -> fx.Node:
        """The value of a static node."""
        if node not in self.constant:
            stored = evaluate(node, {}, None)  # a parameter of the network's own
            if isinstance(stored, Tensor) and self.dtype is not None:
                stored = _cast(stored.detach().clone(), self.dtype)
            self.constant[node] = self._buffer(f'constant_{node.name}', stored)
        return self.constant[node]

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        name = self._free(name)
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    # Kinds of nodes

    def _copy(self, node: fx.Node) -> None:
        """An operation on the values of one step, at all steps at once where that is the same."""
        source = self.chunk.integer_layers.get(node)
        # Joining the steps' bytes is a pass over memory that a compiler does not merge with the neurons.
        several = self.steps > 1 and not self.chunk.coded
        how = folding_of(node, self.plan.varies, self.chunk.dimensions) if several else None
        if how == BROADCAST:
            self.together[node] = self._call(node, lambda arg: self.value(arg) if arg in self.plan.varies
                                             else self.once(arg))
        elif how == MERGED:
            self.together[node] = self.graph.call_function(_split, (self._call(node, self._merged), self.steps))
        elif source is not None:
            conv, threshold = self.plan.modules[node], self.plan.modules[source].threshold
            name = self._module(f'integer_{node.name}', IntegerConvolution(
                conv, threshold, self.chunk.coded[source]))
            self._each(node, [self.graph.call_module(name, (codes,)) for codes in self.codes[source]])
        else:
            self._each(node, [self._call(node, functools.partial(self.at, step=step)) for step in range(self.steps)])

    def _each(self, node: fx.Node, values: list[fx.Node]) -> None:
        """Set the value of a node at each step."""
        self.single[node] = values
        if self.steps == 1:
            self.together[node] = values[0]

    def _module(self, name: str, module: nn.Module) -> str:
        name = self._free(name)
        self.root.add_module(name, module)
        return name

    def _free(self, name: str) -> str:
        """A name that nothing has yet: ``stem.0`` and ``stem_0`` are two modules."""
        while hasattr(self.root, name):
            name += '_'
        return name

    def _merged(self, node: fx.Node) -> fx.Node:
        if node not in self.plan.varies:
            return self.once(node)
        value = self.value(node)
        if value.target is _split:  # of what was merged just before
            return source_of(value)
        return self.graph.call_function(torch.flatten, (value, 0, 1))

    def _call(self, node: fx.Node, value: Callable[[fx.Node], fx.Node]) -> fx.Node:
        for arg in node.all_input_nodes:
            value(arg)  # its nodes must come before
        copied = self.graph.node_copy(node, value)
        if node.op == 'call_method' and node.target == 'view' and not isinstance(node.args[1], torch.dtype):
            copied.target = 'reshape'  # what lies in memory channels last has no such view
        if node.op == 'call_module':
            name = str(node.target)
            if name not in self.called:
                module = self.plan.modules[node]
                if not self.chunk.share:
                    module = copy.deepcopy(module)
                self.called[name] = self._module(
                    name.replace('.', '_'), module if self.dtype is None else module.to(self.dtype))
            copied.target = self.called[name]
        return copied

    def _fire(self, node: fx.Node, kept: dict, update: Callable, bias: fx.Node | None, first: fx.Node,
              record: bool) -> None:
        source = source_of(node)
        varies = source in self.plan.varies
        current: Any = self.given.get(source) or self.once(source) if not varies else self.value(source) \
            if not self.chunk.coded else [self.at(source, step) for step in range(self.steps)]
        states = [kept[entry] for entry in self.chunk.kept if entry.node is node and entry.kind == 'neuron']
        neuron, code = self.plan.modules[node], self.chunk.coded.get(node)
        name = self._module(f'fire_{node.name}', Firing(
            neuron, self.steps, varies, self.dtype, record, self.chunk.tiled, code))
        fired = self.graph.call_module(name, (current, bias, first, *states))
        self.together[node] = self.graph.call_function(_item, (fired, 0))
        if code is not None:
            self._hand_on(node, code, self.together.pop(node))
        for number, _ in enumerate(states):
            update(Kept(node, 'neuron', number), self.graph.call_function(_item, (fired, number + 1)))
        if record:
            self.counts.append(self.graph.call_function(_item, (fired, len(states) + 1)))

    def _hand_on(self, node: fx.Node, code: Code, codes: fx.Node) -> None:
        self.codes[node] = [self.graph.call_function(_item, (codes, step)) for step in range(self.steps)]
        decoder = NativeDecoder if node in self.chunk.native else Decoder
        self.decoders[node] = self._module(
            f'decode_{node.name}', decoder(self.plan.modules[node], code, self.chunk.dimensions[node]))

    def _fire_natively(self, node: fx.Node, kept: dict, update: Callable, first: fx.Node, record: bool) -> None:
        """A layer of neurons, and all between it and the layers before it, in one call."""
        coded, modules = self.chunk.coded, self.plan.modules
        maps, terms = [], []
        for source, conv in self.chunk.native[node]:
            terms.append((modules[source] if source in coded else None, coded.get(source),
                          None if conv is None else modules[conv]))
            maps.append(self.codes[source] if source in coded else
                        [self.at(source, step) for step in range(self.steps)] if source in self.plan.varies else
                        [self.given.get(source) or self.once(source)])
        entry = Kept(node, 'neuron')
        name = self._module(f'fire_{node.name}', NativeLayer(modules[node], coded[node], terms, self.steps, record))
        fired = self.graph.call_module(name, (first, kept.get(entry), *maps))
        self._hand_on(node, coded[node], fired)
        if entry in kept:
            update(entry, self.codes[node][-1])
        if record:
            self.counts.append(self.graph.call_function(_item, (fired, self.steps)))

    def _run_analog(self, node: fx.Node, kept: dict, update: Callable, first: fx.Node) -> None:
        """Let a nonlinear operation f follow the mean of its inputs over time.

        It puts out the increase of ``t f(mean of the first t inputs)``, so that the mean of its outputs over T steps is
        exactly f of the mean of its inputs. For max pooling ``t f(S / t) = f(S)``: this is the increase of the running
        maximum of the summed spikes, which is again 0 or the threshold.
        """
        graph = self.graph
        inputs = self.chunk.running_inputs(node)
        sums = {arg: kept[Kept(node, 'sum', index)] for index, arg in enumerate(inputs)}
        total, outputs = kept[Kept(node, 'total')], []
        for step in range(self.steps):
            scale: Any = 1. if is_max_pool(node) else graph.call_function(torch.add, (first, step + 1))
            sums = {arg: graph.call_function(torch.add, (value, self.at(arg, step))) for arg, value in sums.items()}
            means = {arg: graph.call_function(_divide, (value, scale, self.dtype)) for arg, value in sums.items()}
            given = {arg: means[arg] if arg in means else self.at(arg, step) for arg in node.all_input_nodes}
            value = self._call(node, given.__getitem__)
            scaled = graph.call_function(_multiply, (value, scale, node.name))
            change = graph.call_function(torch.sub, (scaled, total))
            outputs.append(change if self.dtype is None else graph.call_function(_cast, (change, self.dtype)))
            total = scaled
        for index, value in enumerate(sums.values()):
            update(Kept(node, 'sum', index), value)
        update(Kept(node, 'total'), total)
        self._each(node, outputs)


def _split(value: Tensor, steps: int) -> Tensor:
    return value.unflatten(0, (steps, -1))


def _item(values, index: int):
    return values[index]


def _cast(value, dtype: torch.dtype):
    """A tensor of floating-point numbers in another format; anything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _add_steps(total: Tensor, value: Tensor, several: bool) -> Tensor:
    # One by one: the sum does not depend on how steps were grouped.
    for each in value.unbind(0) if several else (value,):
        total = total + each
    return total


def _divide(x: Tensor, count: Tensor | float, dtype: torch.dtype | None) -> Tensor:
    return x / count if dtype is None else (x / count).to(dtype)


def _multiply(x: Tensor, count: Tensor | float, name: str) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"{name} gives {x.dtype}, which has no mean over time that a rate code could follow: "
                         "use pipeline='differential'")
    return x * count if x.dtype == torch.float64 else x.float() * count
