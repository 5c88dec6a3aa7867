"""Place neurons for differential coding: for every activation, and before all weights that would see no spikes."""
import logging
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

from torch import fx, nn

from ..neurons.layer import IFNeuron
from ..simulation.operations import NORMS, is_max_pool, module_of, objection, reads_shape
from ..simulation.plan import is_neuron
from ..simulation.rectifiers import relu_ceiling
from ..simulation.weighted import has_weights, weighted_input
from .folding import qualified_names
from .regions import Region, Regions, activation_of, called_name, is_activation, operands
from .tracing import ConversionError

RECURRENT = nn.RNNBase, nn.RNNCellBase
RANDOM = {
    'rand', 'randn', 'randint', 'randperm', 'rand_like', 'randn_like', 'randint_like', 'bernoulli', 'multinomial',
    'normal', 'poisson', 'gumbel_softmax', 'uniform', 'exponential', 'geometric', 'cauchy', 'log_normal', 'random',
    'dropout', 'dropout1d', 'dropout2d', 'dropout3d', 'alpha_dropout', 'feature_dropout', 'feature_alpha_dropout',
    'stochastic_depth', 'drop_path', 'drop_block2d', 'drop_block3d'}


def place_everywhere(network: fx.GraphModule, include: list[str], exclude: list[str]) -> list[str]:
    """Let neurons stand for every element-wise function of one value, and before weights that would see no spikes.

    What mixes values (norms, softmax, products of two values that vary) stays: it computes on what neurons have sent so
    far. Weights may read neurons, through affine operations without weights and max pooling, or the network's input;
    anything else is first sent by neurons whose activation is the identity.

    Args:
        network: traced, without dropout; changed in place.
        include, exclude: patterns of activations and weighted layers, see :func:`mmsnn.convert`; all others stay as
            they are.

    Returns:
        The names of what stays graded.

    Raises:
        ConversionError: something is random, or cannot be traced.
        ValueError: a pattern matches nothing.
    """
    graph = network.graph
    network.add_module('neurons', nn.Module())
    depends = depending(graph)
    unmatched = set(include) | set(exclude)
    selected: set[fx.Node] = set()
    for node in graph.nodes:
        matched = {p for p in (*include, *exclude) if any(fnmatch(name, p) for name in qualified_names(node))}
        if weighted_input(node, depends) is not None or objection(node, depends) or relu_ceiling(node) is not None:
            unmatched -= matched
        if matched.intersection(include) and not matched.intersection(exclude):
            selected.add(node)
    if unmatched - {'*'}:
        raise ValueError(f'include/exclude patterns that match no activation, weighted layer or other operation that '
                         f'is not affine: {sorted(unmatched)}')
    refuse_random(graph, selected)
    raw = raw_values(graph, depends)
    placed: dict[fx.Node, fx.Node] = {}  # an activation may be that of another one, which others read as well
    for region in Regions(graph, depends).find(selected):
        if region.source not in raw or any(map(is_activation, region.nodes)):
            source = placed.get(region.source, region.source)
            placed[region.nodes[-1]] = _replace(network, region._replace(source=source))
    graph.eliminate_dead_code()
    graded = _reach_weights(network, selected)
    if graded:
        logging.getLogger(__name__).info(
            '%d operations mix values and stay graded units, on what neurons have sent so far: %s', len(graded),
            ', '.join(graded))
    return graded


def depending(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values, not merely sizes, depend on the network's input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == 'placeholder' or (not reads_shape(node) and found.intersection(
                value for value in node.all_input_nodes if not reads_shape(value))):
            found.add(node)
    return found


def raw_values(graph: fx.Graph, depends: set[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the network's input through neither weights nor neurons."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node in depends and (node.op == 'placeholder' or not (
                is_neuron(node) or weighted_input(node, depends) is not None
                or not found.issuperset(depends.intersection(node.all_input_nodes)))):
            found.add(node)
    return found


def refuse_random(graph: fx.Graph, selected: set[fx.Node]) -> None:
    """Refuse what is no deterministic function of its input, and recurrent layers.

    Raises:
        ConversionError: naming each.
    """
    problems, recurrent = [], []
    for node in graph.nodes:
        if isinstance(module_of(node), RECURRENT) and node in selected:
            recurrent.append(f'  {qualified_names(node)[0]}: {type(module_of(node)).__name__}')
        if 'untraceable' in node.meta and node in selected:
            problems.append(f'  {qualified_names(node)[0]}: {objection(node, set())}')
        elif node.op in ('call_function', 'call_method') and called_name(node) in RANDOM:
            problems.append(f'  {qualified_names(node)[0]}: {called_name(node)}() is random')
    if recurrent:
        raise ConversionError(
            'these layers are recurrent, and the weights within would read no spikes:\n' + '\n'.join(recurrent)
            + '\nConvert what comes before, or leave them as they are with exclude=[...].')
    if problems:
        raise ConversionError(
            'these operations are no deterministic functions that could be traced:\n' + '\n'.join(problems)
            + '\nReplace them in the ANN; what cannot be traced may also be left as it is with exclude=[...], or '
            'traced where it decides by sizes: example=..., an input or its shape.')


def _replace(network: fx.GraphModule, region: Region) -> fx.Node:
    """Put neurons in the place of a region; return the node that calls them."""
    graph, last = network.graph, region.nodes[-1]
    ceiling = relu_ceiling(last) if len(region.nodes) == 1 else None
    neuron = IFNeuron(activation=activation_of(region, network)) if ceiling is None else IFNeuron(ceiling)
    with graph.inserting_after(last):
        node = _call(network, neuron, last.name, region.source)
    neuron.channel_axis = channel_axis(node)
    last.replace_all_uses_with(node)
    for inner in reversed(region.nodes):
        graph.erase_node(inner)
    return node


def _call(network: fx.GraphModule, neuron: IFNeuron, name: str, source: fx.Node) -> fx.Node:
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), None)
    neurons = network.get_submodule('neurons')
    while hasattr(neurons, name):
        name += '_'
    neurons.add_module(name, neuron.to(dtype))
    return network.graph.call_module(f'neurons.{name}', (source,))


def _reach_weights(network: fx.GraphModule, selected: set[fx.Node]) -> list[str]:
    """Place identity neurons before weights that would read anything else than spikes; name all that stays graded."""
    graph, graded = network.graph, []
    depends = depending(graph)
    varies = depends - raw_values(graph, depends)
    spiking: set[fx.Node] = set()
    identities: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node not in varies or node.op == 'output':
            continue
        if is_neuron(node):
            spiking.add(node)
            continue
        affine = is_max_pool(node) or objection(node, varies) is None
        inputs = varies.intersection(node.all_input_nodes)
        weighted = weighted_input(node, varies)
        if not affine:
            graded.append(node.name)
        elif weighted is None:
            if inputs and spiking.issuperset(inputs):
                spiking.add(node)
        elif weighted in varies and weighted not in spiking:
            if node not in selected:
                graded.append(node.name)
                continue
            if weighted not in identities:
                with graph.inserting_after(weighted):
                    identities[weighted] = _call(network, IFNeuron(activation=nn.Identity()),
                                                 f'{weighted.name}_identity', weighted)
            node.replace_input_with(weighted, identities[weighted])
    for identity in identities.values():
        neuron: Any = network.get_submodule(str(identity.target))
        neuron.channel_axis = channel_axis(identity)
    return graded


def channel_axis(node: fx.Node) -> int:
    """Where the channels of a layer of neurons stand: 1, or -1 between linear layers and norms over the last dimension.

    Decided by the nearest module that tells, among those that read the neurons and those that they read.
    """
    def ahead(value: fx.Node) -> list[fx.Node]:
        return list(value.users)

    def behind(value: fx.Node) -> list[fx.Node]:
        return value.all_input_nodes

    directions: list[Callable[[fx.Node], list[fx.Node]]] = [behind, ahead]
    if any(has_weights(module_of(user)) for user in node.users):
        directions.reverse()
    for neighbours in directions:
        stack, seen = neighbours(node), set[fx.Node]()
        while stack:
            value = stack.pop()
            module = module_of(value)
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                return -1
            if has_weights(module) or isinstance(module, (*NORMS, nn.GroupNorm)):
                return 1
            through = is_neuron(value) or operands(value, {*value.all_input_nodes, value}) is not None
            if through and value not in seen:
                seen.add(value)
                stack += neighbours(value)
    return 1
