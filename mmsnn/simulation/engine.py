"""The fast time loop: K steps as one graph, membrane potentials in and out, which torch.compile makes one program of.

It computes what :meth:`mmsnn.simulation.plan.Plan.simulate` does, in another arithmetic where asked: spikes and
currents in ``dtype``, membrane potentials and sums in float32.
"""
import copy
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from ..neurons.integrate_and_fire import FiringRule, per_channel
from .operations import is_max_pool, source_of
from .plan import Env, Plan, evaluate, is_neuron


def fire_chunk(current: Tensor, potential: Tensor, count: Tensor | None, threshold: Tensor, reciprocal: Tensor,
               bias: Tensor, rule: FiringRule, limit: int, steps: int, dtype: torch.dtype,
               ) -> tuple[Tensor, Tensor, Tensor | None]:
    """The equations of :func:`mmsnn.integrate_and_fire` and :func:`mmsnn.integrate_and_burst`, without state.

    Args:
        current: of each step, folded into the batch, (K N, ...), or the same at every step, (N, ...).
        potential, count: state before the first step, (N, ...): float32, and any dtype that holds ``limit``.
        threshold, reciprocal: (1,) or (C,); see :func:`reciprocal_of`.
        bias: (1,) or (C,), or one for each of the K steps, (K, C).
        rule, limit: how the neurons fire, and the largest count.
        steps: K.
        dtype: of the spikes.

    Returns:
        Spikes, (K N, ...), and the state after the last step.
    """
    threshold, reciprocal = per_channel(threshold, potential), per_channel(reciprocal, potential)
    varies = current.shape[0] != potential.shape[0] if steps > 1 else True
    folded = current.unflatten(0, (steps, -1)) if varies else None
    counted = None if count is None else count.int()
    spikes = []
    for step in range(steps):
        constant = per_channel(bias[step] if bias.ndim > 1 else bias, potential)
        potential = potential + (current if folded is None else folded[step]) + constant
        if counted is not None:
            # Integers are clipped in fewer instructions than floating-point numbers, which may be NaN; isnan() is slow.
            due = (potential * reciprocal).floor()
            lowest = -rule.max_spikes if rule.signed else 0  # a property is more than torch 2.1 can trace
            total = (due.int().clamp(lowest, rule.max_spikes) + counted).clamp(0, limit)
            fired = torch.where(due == due, (total - counted).to(due.dtype), due)
            counted = total
            spike = fired * threshold
        else:
            spike = torch.where(potential >= threshold, threshold, 0.)
        if rule.reset == 'zero':
            potential = torch.where(spike > 0, 0., potential)
        else:
            potential = potential - spike
        spikes.append(spike.to(dtype))
    return torch.cat(spikes), potential, None if count is None or counted is None else counted.to(count.dtype)


def reciprocal_of(threshold: Tensor) -> Tensor:
    """1 / h, rounded up, so that a potential of k h gives k spikes as division does: products are faster."""
    return torch.nextafter(1 / threshold, torch.full_like(threshold, math.inf))


def count_spikes(spikes: Tensor, threshold: Tensor) -> Tensor:
    """How many spikes there are, a burst of k as k; 0-d, float64."""
    number = (spikes.float() / per_channel(threshold, spikes)).round().abs()
    return number.flatten(1).sum(1).double().sum()


class State(NamedTuple):
    """One tensor that a chunk takes over from the one before: what it belongs to, and which of its tensors it is."""

    node: fx.Node
    kind: str
    index: int = 0  # type: ignore[assignment]  # a tuple's own index() is not needed


class Chunk:
    """K steps of a plan as one traced graph.

    Attributes:
        graph_module: takes static values, per-step biases, the number of the first step, and states. ``in_place`` it
            updates the states and returns the number of spikes of each layer of neurons where ``record``; otherwise it
            returns the new states.
        static: nodes whose values it takes first.
        stepped: neurons whose biases for these K steps it takes next, (K, C).
        states: what it takes last.
    """

    def __init__(self, plan: Plan, steps: int, dtype: torch.dtype, record: bool, in_place: bool = True) -> None:
        self.plan, self.steps, self.dtype, self.in_place = plan, steps, dtype, in_place
        varying = set(plan.varying)
        self.neurons = [node for node in plan.varying if is_neuron(node)]
        self.static = [node for node in (*plan.inputs, *plan.static)
                       if varying.intersection(node.users) and node.op != 'get_attr']
        self.stepped = [node for node in self.neurons if plan.modules[node].bias.ndim > 1]
        self.states: list[State] = []
        for node in plan.varying:
            if is_neuron(node):
                self.states += [State(node, 'potential')]
                self.states += [State(node, 'count')] * plan.modules[node].rule.counts
            elif node in plan.running:
                self.states += [State(arg, 'sum', id(node)) for arg in self._running_inputs(node)]
                self.states += [State(node, 'total')]
        self.targets = [node for node in plan.targets if node in plan.varies]
        self.states += [State(node, 'output') for node in dict.fromkeys(self.targets)]
        self.graph_module = self._build(record)

    def _running_inputs(self, node: fx.Node) -> list[fx.Node]:
        return [arg for arg in node.all_input_nodes if arg in self.plan.varies]

    def _build(self, record: bool) -> fx.GraphModule:
        plan, steps, dtype = self.plan, self.steps, self.dtype
        graph, root = fx.Graph(), nn.Module()
        static = {node: graph.placeholder(f'static_{node.name}') for node in self.static}
        stepped = {node: graph.placeholder(f'bias_{node.name}') for node in self.stepped}
        count = graph.placeholder('first_step')
        states = {state: graph.placeholder(f'{state.kind}{index}_{state.node.name}')
                  for index, state in enumerate(self.states)}
        folded: dict[fx.Node, fx.Node] = {}
        updates: dict[State, fx.Node] = {}
        spikes = []

        def constant(name: str, value: Tensor) -> fx.Node:
            root.register_buffer(name, value)
            return graph.get_attr(name)

        def value(node: fx.Node) -> fx.Node:
            """The value at each step, folded into the batch and in the dtype of spikes."""
            if node not in folded:
                if node.op == 'get_attr':
                    stored = evaluate(node, {}, None)
                    folded[node] = constant(f'constant_{node.name}', _cast(stored.detach().clone(), dtype))
                else:
                    batched = node in plan.batched
                    folded[node] = graph.call_function(_repeat, (static[node], steps if batched else 1, dtype))
            return folded[node]

        for node in plan.varying:
            module = plan.modules[node]
            if is_neuron(node):
                rounded = _cast(module.threshold, dtype).float()
                threshold = constant(f'threshold_{node.name}', rounded)
                reciprocal = constant(f'reciprocal_{node.name}', reciprocal_of(rounded))
                bias = stepped[node] if node in stepped else constant(f'bias_{node.name}', module.bias.clone())
                source = source_of(node)
                current = value(source) if source in plan.varies else static[source]
                potential, counts = states[State(node, 'potential')], states.get(State(node, 'count'))
                fired = graph.call_function(fire_chunk, (
                    current, potential, counts, threshold, reciprocal, bias, module.rule,
                    module.rule.max_rate * module.time_steps, steps, dtype))
                folded[node] = graph.call_function(_item, (fired, 0))
                updates[State(node, 'potential')] = graph.call_function(_item, (fired, 1))
                if counts is not None:
                    updates[State(node, 'count')] = graph.call_function(_item, (fired, 2))
                if record:
                    spikes.append(graph.call_function(count_spikes, (folded[node], threshold)))
                continue
            if node.op == 'call_module':
                name = str(node.target).replace('.', '_')
                if not hasattr(root, name):
                    root.add_module(name, _cast(copy.deepcopy(module), dtype))
            if node in plan.running:
                folded[node] = self._run_analog(node, graph, value, states, updates, count)
            else:
                folded[node] = self._copy(node, graph, value)
        for node in dict.fromkeys(self.targets):
            state = State(node, 'output')
            updates[state] = graph.call_function(_add_steps, (states[state], value(node), steps))
        if self.in_place:
            for state, update in updates.items():
                graph.call_method('copy_', (states[state], update))
        graph.output(tuple(spikes) if self.in_place else tuple(updates[state] for state in self.states))
        return fx.GraphModule(root, graph)

    def _copy(self, node: fx.Node, graph: fx.Graph, value: Callable[[fx.Node], fx.Node]) -> fx.Node:
        for arg in node.all_input_nodes:
            value(arg)  # its nodes must come before
        copied = graph.node_copy(node, value)
        if node.op == 'call_module':
            copied.target = str(node.target).replace('.', '_')
        return copied

    def _run_analog(self, node: fx.Node, graph: fx.Graph, value, states: dict, updates: dict,
                    first: fx.Node) -> fx.Node:
        """See :func:`mmsnn.simulation.plan._run_analog`."""
        inputs = self._running_inputs(node)
        sums = {arg: states[State(arg, 'sum', id(node))] for arg in inputs}
        total, outputs = states[State(node, 'total')], []
        for step in range(self.steps):
            scale = 1. if is_max_pool(node) else graph.call_function(torch.add, (first, step + 1))
            sums = {arg: graph.call_function(_add_step, (sums[arg], value(arg), step, self.steps)) for arg in inputs}
            means = {arg: graph.call_function(_divide, (sums[arg], scale, self.dtype)) for arg in inputs}
            scaled = graph.call_function(_multiply, (
                self._copy(node, graph, lambda arg: means[arg] if arg in means else value(arg)), scale))
            outputs.append(graph.call_function(torch.sub, (scaled, total)))
            total = scaled
        for arg in inputs:
            updates[State(arg, 'sum', id(node))] = sums[arg]
        updates[State(node, 'total')] = total
        return graph.call_function(_join, (outputs, self.dtype))


def _cast(value, dtype: torch.dtype):
    """A tensor or module with its floating-point numbers in another format."""
    if isinstance(value, nn.Module):
        return value.to(dtype)
    return value.to(dtype) if value.is_floating_point() else value


def _repeat(x, steps: int, dtype: torch.dtype):
    """A value that is the same at each step, folded into the batch."""
    if not isinstance(x, Tensor):
        return x
    x = _cast(x, dtype)
    return x.repeat(steps, *[1] * (x.ndim - 1)) if steps > 1 and x.ndim > 1 else x


def _item(values: tuple, index: int):
    return values[index]


def _add_step(total: Tensor, x: Tensor, step: int, steps: int) -> Tensor:
    return total + x.unflatten(0, (steps, -1))[step]


def _add_steps(total: Tensor, x: Tensor, steps: int) -> Tensor:
    for value in x.unflatten(0, (steps, -1)):
        total = total + value
    return total


def _divide(x: Tensor, count: Tensor | float, dtype: torch.dtype) -> Tensor:
    return (x / count).to(dtype)


def _multiply(x: Tensor, count: Tensor | float) -> Tensor:
    return x.float() * count


def _join(outputs: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(outputs).to(dtype)


class Engine:
    """Simulates a converted network with compiled chunks.

    Args:
        network: the traced graph with its neurons.
        plan: of its outputs.
        dtype: of spikes, currents and weights.
        compile: whether to use torch.compile; otherwise the same graph runs operation by operation.
    """

    def __init__(self, network: fx.GraphModule, plan: Plan, dtype: torch.dtype, compile: bool) -> None:
        self.network, self.plan, self.dtype, self.compile = network, plan, dtype, compile
        self._chunks: dict[tuple[int, bool], tuple[Chunk, Callable]] = {}
        self._shapes: dict[tuple, dict[fx.Node, torch.Size]] = {}
        self._made_for: list[tuple] = []
        self._held: list[Tensor] = []
        self._meta: fx.GraphModule | None = None

    def chunk(self, steps: int, record: bool) -> tuple[Chunk, Callable]:
        """The graph of K steps and how to run it; made anew when a weight or a neuron has changed."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        rules = [(self.plan.modules[node].rule, self.plan.modules[node].time_steps) for node in self.plan.varying
                 if is_neuron(node)]
        made_for = [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors] + rules
        if made_for != self._made_for:
            # The tensors are held: a new one must not come to lie where an old one was.
            self._chunks, self._made_for, self._held = {}, made_for, tensors
        if (steps, record) not in self._chunks:
            chunk = Chunk(self.plan, steps, self.dtype, record)
            module = chunk.graph_module.to(memory_format=torch.channels_last)
            run = compiled(module, tensors[0].device) if self.compile else module
            self._chunks[steps, record] = chunk, run
        return self._chunks[steps, record]

    def shapes(self, values: Env) -> dict[fx.Node, torch.Size]:
        """The shape that each node's tensor has at one step."""
        key = tuple(value.shape for value in values.values() if isinstance(value, Tensor))
        if key not in self._shapes:
            if self._meta is None:
                self._meta = copy.deepcopy(self.network).to('meta')
            twin = dict(zip(self.network.graph.nodes, self._meta.graph.nodes))
            env = {twin[node]: value.to('meta') if isinstance(value, Tensor) else value
                   for node, value in values.items()}
            found = {}
            for node in (*self.plan.static, *self.plan.varying):
                other = twin[node]
                module = self._meta.get_submodule(other.target) if other.op == 'call_module' else None
                env[other] = evaluate(other, env, module)
                if isinstance(env[other], Tensor):
                    found[node] = env[other].shape
            self._shapes[key] = found
        return self._shapes[key]

    def sums(self, values: Env, stops: Iterable[int], delay: int, chunk_steps: int | None) -> Iterator[tuple[int, Env]]:
        """As :meth:`mmsnn.simulation.plan.Plan.sums`. The steps of a chunk divide ``delay`` and every stop."""
        stops = sorted(set(stops))
        steps = math.gcd(chunk_steps or preferred_steps(self.dtype), delay, *stops)
        recorders = {node: self.plan.modules[node].recorders for node in self.plan.varying if is_neuron(node)}
        chunk, run = self.chunk(steps, any(recorders.values()))
        static = self.plan.once(values)
        shapes = self.shapes(values)
        states = [self._start(state, shapes, static) for state in chunk.states]
        outputs = {state.node: tensor for state, tensor in zip(chunk.states, states) if state.kind == 'output'}
        given = [_channels_last(static[node]) for node in chunk.static]
        for start in range(0, stops[-1], steps):
            if start == delay:
                for tensor in outputs.values():
                    tensor.zero_()
            biases = [self.plan.modules[node].bias[start:start + steps] for node in chunk.stepped]
            counts = run(*given, *biases, torch.tensor(float(start)), *states)
            for node, count in zip(chunk.neurons, counts):
                for record in recorders[node]:
                    record(float(count))
            if start + steps in stops:
                # As the ANN's: mmcv's RoIAlign reads memory without asking how it is laid out.
                yield start + steps, {node: tensor.contiguous() for node, tensor in outputs.items()}

    def _start(self, state: State, shapes: dict, static: Env) -> Tensor:
        """A state before the first step."""
        device = self.network_device(static)
        like = torch.empty(shapes[state.node], device=device, memory_format=_format(shapes[state.node]))
        if state.kind == 'potential':
            return _channels_last(self.plan.modules[state.node].start(like).potential)
        if state.kind == 'count':
            neuron = self.plan.modules[state.node]
            return torch.zeros_like(like, dtype=narrowest(neuron.rule.max_rate * neuron.time_steps))
        return torch.zeros_like(like)

    @staticmethod
    def network_device(static: Env) -> torch.device:
        return next(value.device for value in static.values() if isinstance(value, Tensor))


def compiled(module: nn.Module, device: torch.device) -> Callable:
    """The module as a compiled program; where the machine has no compiler, as it is, with a warning."""
    compiler = os.environ.get('CXX', 'g++')  # torch's own choice
    if device.type == 'cpu' and shutil.which(compiler) is None:
        logging.getLogger(__name__).warning(
            'compile=True needs a C++ compiler, and %r is not to be found: simulating without. Install g++, or set CXX',
            compiler)
        return module
    program = torch.compile(module, fullgraph=True)

    def run(*args):
        # Given as an option of torch.compile it would come too late: tracing has to keep weights as constants already.
        with torch._inductor.config.patch(freezing=True):
            return program(*args)

    return run


def preferred_steps(dtype: torch.dtype) -> int:
    """How many steps one chunk should have.

    Membranes are read and written once a chunk, but caches are small, and the time that compiling takes grows faster
    than the number of steps: on a GPU 8 took minutes.
    """
    return 8 // dtype.itemsize


def narrowest(limit: int) -> torch.dtype:
    """The integers that take the least memory and hold counts up to ``limit``.

    The compiler vectorises no int16, and float16 takes half as long again as int32.
    """
    return torch.uint8 if limit <= torch.iinfo(torch.uint8).max else torch.int32


def _format(shape: torch.Size) -> torch.memory_format:
    return torch.channels_last if len(shape) == 4 else torch.contiguous_format


def _channels_last(x):
    return x.contiguous(memory_format=_format(x.shape)) if isinstance(x, Tensor) else x
