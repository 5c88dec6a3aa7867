"""The time loop: which nodes run once, which run at every step, and how steps are folded into the batch."""
import operator
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neurons.integrate_and_fire import IFNeuron
from .operations import is_affine, is_max_pool, module_of, reads_shape, source_of

Env = dict[fx.Node, Any]


def evaluate(node: fx.Node, env: Mapping[fx.Node, Any], module: nn.Module | None) -> Any:
    """Compute one node of a traced graph from the values of its inputs; ``module`` is the one that it calls, if any."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
    target: Any = node.target  # a name or a function
    if node.op == 'call_module':
        assert module is not None
        return module(*args, **kwargs)
    if node.op == 'call_function':
        return target(*args, **kwargs)
    if node.op == 'call_method':
        return getattr(args[0], target)(*args[1:], **kwargs)
    if node.op == 'get_attr':
        return operator.attrgetter(target)(node.graph.owning_module)
    raise RuntimeError(f'the value of {node.op} {node.name} must be given')


def is_neuron(node: fx.Node) -> bool:
    return isinstance(module_of(node), IFNeuron)


def neuron_of(node: fx.Node) -> IFNeuron:
    """Return the layer of neurons that a node calls."""
    neuron = module_of(node)
    assert isinstance(neuron, IFNeuron)
    return neuron


class Plan:
    """What has to be computed, and in which order, to get ``targets`` from ``sources``.

    Nodes behind a neuron or behind one of the ``sources`` vary in time; all others, the stem among them, are
    computed once per input however many steps follow.

    Args:
        graph: a converted network's graph.
        targets: nodes whose values are wanted.
        sources: nodes whose values at each step are given instead of computed, such as stored spikes.
    """

    def __init__(self, graph: fx.Graph, targets: Iterable[fx.Node], sources: Iterable[fx.Node] = ()) -> None:
        self.targets = list(targets)
        needed: set[fx.Node] = set()
        stack = list(self.targets)
        sources = set(sources) - set(self.targets)
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack.extend(() if node in sources else node.all_input_nodes)
        self.sources = [node for node in graph.nodes if node in needed and node in sources]
        self.inputs = [node for node in graph.nodes if node in needed and node.op == 'placeholder']
        varies = set(self.sources)
        self.static: list[fx.Node] = []
        self.varying: list[fx.Node] = []
        for node in graph.nodes:
            if node not in needed or node.op == 'placeholder' or node in varies:
                continue
            if is_neuron(node) or varies.intersection(node.all_input_nodes):
                varies.add(node)
                self.varying.append(node)
            else:
                self.static.append(node)
        self.varies = varies
        # Static values depend on the input (and so carry the batch dimension) unless they come from parameters.
        self.batched = set(self.inputs)
        for node in self.static:
            if not reads_shape(node) and self.batched.intersection(node.all_input_nodes):
                self.batched.add(node)
        self.running = {n for n in self.varying if not is_neuron(n) and not is_affine(n, varies)}
        self.modules: dict[fx.Node, Any] = {node: module_of(node) for node in (*self.static, *self.varying)}
        self._expires = self._last_uses()

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """Map each varying node to the varying values that nobody needs once it has been computed."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self.varying:
            for used in (node, *node.all_input_nodes):
                if used in self.varies:
                    last[used] = node
        expires: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            if used not in self.targets:
                expires.setdefault(node, []).append(used)
        return expires

    def once(self, values: Env) -> Env:
        """Run the static nodes, given the values of ``inputs``; call it once per input."""
        env = dict(values)
        for node in self.static:
            env[node] = evaluate(node, env, self.modules[node])
        return env

    def analog(self, values: Env, quantised: bool = False) -> Env:
        """Run everything without time, given the values of ``inputs`` and ``sources``.

        Neurons rectify, as in the ANN; ``quantised``, they give their rate in closed form [Eq. 17].
        """
        env = self.once(values)
        for node in self.varying:
            module = self.modules[node]
            if quantised and isinstance(module, IFNeuron):
                env[node] = module.rate(env[source_of(node)])
            else:
                env[node] = evaluate(node, env, module)
            for used in self._expires.get(node, ()):
                del env[used]
        return env

    def simulate(self, values: Env, time_steps: int, chunk_steps: int,
                 spikes: Callable[[fx.Node, int, int], Tensor] | None = None) -> Iterator[Env]:
        """Run T time steps and yield, chunk after chunk of K steps, the targets that vary.

        Args:
            values: the tensors of ``inputs``, batch size N.
            time_steps: T.
            chunk_steps: K, how many steps are folded into the batch; the last chunk may be shorter.
            spikes: returns the spikes of a source from one step up to another, shape (K, N, ...).

        Yields:
            Target values of shape (K, N, ...). They are only valid until the next chunk is asked for.
        """
        static = self.once(values)
        state: dict[fx.Node, list] = {}
        for start in range(0, time_steps, chunk_steps):
            steps = min(chunk_steps, time_steps - start)
            env = _Chunk(static, self, steps)
            for source in self.sources:
                assert spikes is not None
                env[source] = spikes(source, start, start + steps).flatten(0, 1)
            for node in self.varying:
                module = self.modules[node]
                if isinstance(module, IFNeuron):
                    env[node] = _fire(node, env, module, state, start)
                elif node in self.running:
                    env[node] = _run_analog(node, env, module, state, start)
                else:
                    env[node] = evaluate(node, env, module)
                for used in self._expires.get(node, ()):
                    del env[used]
            yield {target: env.unfolded(target) for target in self.targets if target in self.varies}


    def sums(self, values: Env, stops: Iterable[int], delay: int, chunk_steps: int) -> Iterator[tuple[int, Env]]:
        """Simulate up to the last of ``stops``; at each, yield the step and the targets' sums from ``delay`` on."""
        stops, step = sorted(set(stops)), 0
        total: Env = {}
        for chunk in self.simulate(values, stops[-1], chunk_steps):
            # One by one: the sum does not depend on how steps were grouped.
            for index in range(min(chunk_steps, stops[-1] - step)):
                step += 1
                for node, value in chunk.items():
                    if step > delay:
                        total[node] = total[node].add_(value[index]) if node in total else value[index].clone()
                if step in stops:
                    yield step, total


class _Chunk(Env):
    """Values during one chunk: steps are folded into the batch, (K * N, ...), and static values repeated to match."""

    def __init__(self, static: Env, plan: Plan, steps: int) -> None:
        super().__init__()
        self.static, self.plan, self.steps = static, plan, steps

    def __missing__(self, node: fx.Node):
        value = self.static[node]
        if node in self.plan.batched and isinstance(value, Tensor) and value.ndim > 1:
            value = value.repeat(self.steps, *[1] * (value.ndim - 1))
            self[node] = value
        return value

    def unfolded(self, node: fx.Node) -> Tensor:
        """The value at each step, shape (K, N, ...)."""
        if node not in self.plan.varies:
            value = self.static[node]
            return value.unsqueeze(0).expand(self.steps, *value.shape)
        return self[node].unflatten(0, (self.steps, -1))


def _fire(node: fx.Node, env: _Chunk, neuron: IFNeuron, state: dict, start: int) -> Tensor:
    currents = env.unfolded(source_of(node))
    if node not in state:
        # The spikes of one chunk are read within it, so the next one can use the same memory.
        state[node] = [neuron.start(currents[0]), currents.new_empty(currents.shape)]
    carried, buffer = state[node]
    return neuron.fire(currents, carried, start, out=buffer[:len(currents)]).flatten(0, 1)


def _run_analog(node: fx.Node, env: _Chunk, module: nn.Module | None, state: dict, start: int) -> Tensor:
    """Let a nonlinear operation f follow the mean of its input over time.

    It puts out the increase of ``t f(mean of the first t inputs)``, so that the mean of its outputs over T steps is
    exactly f of the mean of its inputs. For max pooling ``t f(S / t) = f(S)``: this is the increase of the running
    maximum of the summed spikes, which is again 0 or the threshold.
    """
    inputs = {arg: env.unfolded(arg) for arg in node.all_input_nodes if isinstance(env[arg], Tensor)}
    homogeneous = is_max_pool(node)
    sums, total = state.get(node, ({}, 0.))
    outputs = []
    for step in range(env.steps):
        sums = {arg: sums[arg] + value[step] if sums else value[step].clone() for arg, value in inputs.items()}
        count = 1 if homogeneous else start + step + 1
        means = ChainMap({arg: value / count for arg, value in sums.items()}, env)
        before, total = total, evaluate(node, means, module) * count
        outputs.append(total - before)
    state[node] = (sums, total)
    return torch.cat(outputs)


def chunk_steps_for(example: Tensor, time_steps: int) -> int:
    """Choose how many steps to simulate at once for inputs like ``example``, shape (N, C, H, W).

    Small inputs are bound by the overhead of each call, so steps are folded. Large ones are bound on a CPU by the
    caches, which one step of one image already fills, and on a GPU by memory: ResNet-50 takes 2.6 GiB for this.
    """
    budget = 2 ** 23 if example.is_cuda else 2 ** 19
    return max(1, min(time_steps, budget // max(1, example.numel())))
