"""Parts of a graph that compute an element-wise function of one value: what a layer of neurons can stand for."""
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..simulation.operations import computes_as, module_of, objection
from ..simulation.rectifiers import relu_ceiling
from ..simulation.weighted import weighted_input

# In evaluation mode: RReLU has the middle of its slopes.
ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU,
    nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Mish, nn.LogSigmoid, nn.Softsign,
    nn.Hardshrink, nn.Softshrink, nn.Tanhshrink)
# By name, as functions and as methods. Those of the first set are activations wherever they stand.
ACTIVATIONS = {
    'relu', 'relu6', 'hardtanh', 'threshold', 'leaky_relu', 'prelu', 'rrelu', 'elu', 'selu', 'celu', 'silu', 'gelu',
    'hardswish', 'hardsigmoid', 'sigmoid', 'expit', 'tanh', 'softplus', 'mish', 'logsigmoid', 'softsign', 'hardshrink',
    'softshrink', 'tanhshrink', 'clamp', 'clip', 'clamp_min', 'clamp_max', 'maximum', 'minimum', 'max', 'min', 'fmax',
    'fmin', 'where', 'erf', 'erfc', 'sin', 'cos', 'atan', 'arctan', 'sinh', 'cosh', 'asinh', 'arcsinh'}
ARITHMETIC = {
    'add', 'sub', 'subtract', 'rsub', 'mul', 'multiply', 'div', 'divide', 'true_divide', 'truediv', 'neg', 'negative',
    'pos', 'positive', 'pow', 'float_power', 'square', 'sqrt', 'rsqrt', 'exp', 'exp2', 'expm1', 'log', 'log2', 'log10',
    'log1p', 'abs', 'absolute', 'reciprocal', 'sign', 'sgn', 'gt', 'lt', 'ge', 'le', 'greater', 'less', 'greater_equal',
    'less_equal', 'eq', 'ne', 'logical_and', 'logical_or', 'logical_not', 'masked_fill', 'addcmul', 'addcdiv', 'lerp',
    'float', 'to', 'type_as', 'contiguous', 'clone', 'detach', 'round', 'floor', 'ceil', 'trunc'}
# The same functions by what is called; some are named otherwise in themselves than where they are offered.
FUNCTIONS = {getattr(space, name): name for space in (torch, F, operator, torch.special)
             for name in sorted(ACTIVATIONS | ARITHMETIC) if callable(getattr(space, name, None))}
METHODS = {'max', 'min'}  # element-wise only where they are given a second value


class Region(NamedTuple):
    """Nodes that compute an element-wise function of one value and nothing else, in order; the last one gives it."""

    source: fx.Node
    nodes: list[fx.Node]


def called_name(node: fx.Node) -> str:
    """The name of the function, or method, that a node calls."""
    if node.op == 'call_function' and node.target in FUNCTIONS:
        return FUNCTIONS[node.target]
    return str(node.target if node.op == 'call_method' else getattr(node.target, '__name__', node.target)).strip('_')


def is_activation(node: fx.Node) -> bool:
    """True for functions that are meant as activations, not as arithmetic such as a square root."""
    return computes_as(module_of(node), ACTIVATION_MODULES) or (
        node.op in ('call_function', 'call_method') and called_name(node) in ACTIVATIONS)


def operands(node: fx.Node, depends: set[fx.Node]) -> list[fx.Node] | None:
    """The values that depend on the input in an element-wise operation, each once; None for any other node.

    All other operands must be numbers or parameters.
    """
    if 'untraceable' in node.meta or node not in depends:
        return None
    if node.op == 'call_module':
        if not computes_as(module_of(node), ACTIVATION_MODULES):
            return None
    elif node.op == 'call_method' or node.target in FUNCTIONS:
        name = called_name(node)
        if name not in ACTIVATIONS | ARITHMETIC or (name in METHODS and not (
                len(node.args) == 2 and isinstance(node.args[1], fx.Node))):
            return None
    else:
        return None
    if any(value not in depends and value.op != 'get_attr' for value in node.all_input_nodes):
        return None
    return [value for value in node.all_input_nodes if value in depends]


class Regions:
    """Finds the maximal element-wise regions of a graph.

    Args:
        graph: a traced graph, calls normalised.
        depends: the nodes whose values depend on the network's input.
    """

    def __init__(self, graph: fx.Graph, depends: set[fx.Node]) -> None:
        self.graph, self.depends = graph, depends
        self.position = {node: index for index, node in enumerate(graph.nodes)}

    def find(self, selected: set[fx.Node]) -> list[Region]:
        """All regions that neurons shall stand for, in the order of the graph; their nodes are all ``selected``.

        Arithmetic alone (a square, an exponential) is one only where weights read what it gives: elsewhere it is a step
        of something larger, such as a norm.
        """
        taken: set[fx.Node] = set()
        found = []
        for node in reversed(list(self.graph.nodes)):
            if node in taken or node not in selected or not self._is_nonlinear(node):
                continue
            region = self._around(node, selected)
            if region is not None and (any(map(is_activation, region.nodes)) or self._feeds_weights(node)):
                found.append(region)
                taken.update(region.nodes)
        return found[::-1]

    def _is_nonlinear(self, node: fx.Node) -> bool:
        return operands(node, self.depends) is not None and (
            relu_ceiling(node) is not None or objection(node, self.depends) is not None)

    def _around(self, node: fx.Node, selected: set[fx.Node]) -> Region | None:
        """The largest region that ends at a node."""
        region, frontier = {node}, set(operands(node, self.depends) or ())
        while len(frontier) > 1:  # the latest can only be within the region: it is no source of the others
            latest = max(frontier, key=self.position.__getitem__)
            inner = operands(latest, self.depends)
            if inner is None or not region.issuperset(latest.users):
                return None
            region.add(latest)
            frontier = (frontier - {latest}) | set(inner)
        source, = frontier
        # What comes before joins it as well, up to the first operation that is not affine.
        before, chain = source, set[fx.Node]()
        while (inner := operands(before, self.depends)) and (region | chain).issuperset(before.users):
            if self._is_nonlinear(before):
                longer = self._around(before, selected) if before in selected else None
                if longer is not None:
                    region, source = region | chain | set(longer.nodes), longer.source
                break
            if len(inner) > 1:
                break
            chain.add(before)
            before, = inner
        return Region(source, sorted(region, key=self.position.__getitem__))

    def _feeds_weights(self, node: fx.Node) -> bool:
        """Whether weights read a node's value through nothing but affine operations."""
        stack, seen = [node], {node}
        while stack:
            value = stack.pop()
            for user in value.users:
                if weighted_input(user, self.depends) is value:
                    return True
                if user not in seen and user.op != 'output' and objection(user, self.depends) is None:
                    seen.add(user)
                    stack.append(user)
        return False


def activation_of(region: Region, network: fx.GraphModule) -> nn.Module:
    """The function that a region computes, as a module: the network's own where it is one."""
    last = region.nodes[-1]
    module = module_of(last)
    if module is not None and len(region.nodes) == 1:
        return module
    graph, parts = fx.Graph(), dict[str, Any]()
    copies = {region.source: graph.placeholder('x')}

    def copied(value: fx.Node) -> fx.Node:
        if value not in copies:  # a parameter
            parts[value.name] = operator.attrgetter(str(value.target))(network)
            copies[value] = graph.get_attr(value.name)
        return copies[value]

    for node in region.nodes:
        for value in node.all_input_nodes:
            copied(value)
        copies[node] = copy = graph.node_copy(node, copied)
        copy.meta = {}
        if node.op == 'call_module':
            copy.target = node.name
            parts[node.name] = module_of(node)
    graph.output(copies[last])
    for value in list(graph.nodes):
        if value.op == 'get_attr' and not value.users:
            graph.erase_node(value)
    return fx.GraphModule(parts, graph, 'Activation')
