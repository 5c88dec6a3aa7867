"""The order of computation: what runs once per input, what at every step, and what follows the mean over time."""
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neurons.layer import IFNeuron
from .operations import is_affine, module_of, source_of

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

    Attributes:
        inputs: the placeholders that are needed.
        static, varying: what is computed once, and at every step, each in order.
        varies: the varying nodes and the sources.
        running: varying nodes that are neither neurons nor affine: they follow the mean of their inputs over time.
        modules: what each node calls, or None.
        neurons: the layers of neurons among these.
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
        self.running = {n for n in self.varying if not is_neuron(n) and not is_affine(n, varies)}
        self.modules: dict[fx.Node, Any] = {node: module_of(node) for node in (*self.static, *self.varying)}
        self.neurons = {node: module for node, module in self.modules.items() if isinstance(module, IFNeuron)}
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

    def shapes(self, values: Env) -> dict[fx.Node, torch.Size]:
        """The shape that the tensor of each node has at one step, given those of ``inputs`` and ``sources``.

        Nothing is computed: torch passes shapes on alone (fake tensors).
        """
        from torch._subclasses import FakeTensorMode

        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                return self._shapes({node: fake.from_tensor(value) if isinstance(value, Tensor) else value
                                     for node, value in values.items()})
        except RuntimeError:  # a compiled operator that knows real tensors alone, such as a deformable convolution
            return self._shapes(values)

    @torch.no_grad()
    def _shapes(self, values: Env) -> dict[fx.Node, torch.Size]:
        env = dict(values)
        found = {node: value.shape for node, value in env.items() if isinstance(value, Tensor)}
        for node in (*self.static, *self.varying):
            value = env[node] = evaluate(node, env, self.modules[node])
            if isinstance(value, Tensor):
                found[node] = value.shape
            for used in self._expires.get(node, ()):
                env.pop(used, None)
        return found
