"""Turn a trained ReLU network into a spiking one: trace, fold batch normalisation, place the neurons."""
import copy
import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..neurons.layer import IFNeuron
from ..simulation.network import SpikingNetwork
from ..simulation.operations import (
    ASSERTIONS,
    DROPOUTS,
    OUT_OF_PLACE,
    RELU_FUNCTIONS,
    changes_argument,
    is_affine,
    is_max_pool,
    is_view,
    module_of,
    reads_shape,
    relu_ceiling,
    replace_module,
)


class ConversionError(ValueError):
    """The network holds operations that have no spiking counterpart; the message lists every one."""


def convert(ann: nn.Module, time_steps: int, *, include: str | Iterable[str] = '*', exclude: str | Iterable[str] = (),
            readout: str = 'spikes', delay: int = 0, chunk_steps: int | None = None, dtype: str = 'float32',
            compile: bool = False) -> SpikingNetwork:
    """Convert an ANN into a network of integrate-and-fire neurons; the ANN itself is left untouched.

    The network is traced with torch.fx, batch normalisation is folded into the layer before it [Eq. 25], and every
    ReLU call site gets neurons of its own. Max pooling directly behind the ReLU of a stem is moved before it (they
    commute, and the current is constant there); elsewhere it passes on the increase of the pooled running sum.
    Thresholds are not chosen yet: :func:`mmsnn.calibrate` does that.

    Args:
        ann: any network of convolutions, linear layers and ReLUs that torch.fx can trace. Evaluation mode is used.
        time_steps: T, the number of simulated steps, at least 1.
        include: fnmatch patterns of call sites to make spiking (``'layer4.*'``, ``'*.relu'``).
        exclude: fnmatch patterns of nonlinear call sites to leave analog: they see the mean over time so far, and
            their output over time averages to exactly what the analog operation makes of the mean input.
        readout: what an output that comes from neurons is: ``'spikes'``, their mean over time, or ``'potential'``,
            the rectified mean of the current they accumulated (they still fire into the network) [section 5.4].
        delay: steps at the beginning that the mean over time leaves out, while currents are still on their way
            (delayed readout).
        chunk_steps: time steps simulated at once; chosen by size when None. Changes speed and memory, not results.
        dtype: of spikes, currents and weights when simulating: ``'float32'`` or ``'bfloat16'``, which rounds weights
            and thresholds to 8 bits; membrane potentials and sums stay float32.
        compile: compile the simulation with torch.compile: faster after some 20 seconds once or twice.

    Returns:
        A module with the ANN's call signature. Arguments of the ANN that have a default keep it, and are gone: of
        mmpretrain's ``forward(inputs, data_samples=None, mode='tensor')`` remains ``forward(inputs)``.

    Raises:
        ConversionError: operations that are neither affine nor ReLU, each named with its type.
        ValueError: a wrong ``time_steps``, ``readout`` or ``delay``, or a pattern that matches nothing.
    """
    network = trace(ann)
    fold_batch_norm(network)
    pool_before_static_relu(network)
    include, exclude = ([p] if isinstance(p, str) else list(p) for p in (include, exclude))
    place_neurons(network, include, exclude)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return SpikingNetwork(network, time_steps, readout=readout, chunk_steps=chunk_steps, delay=delay, dtype=dtype,
                          compile=compile)


class _Proxy(fx.Proxy):
    """Records ``+=`` and the like as what they are; torch.fx records an addition that leaves its operand alone."""

    def _in_place(self, operation, other):
        return self.tracer.create_proxy('call_function', operation, (self, other), {})

    __iadd__ = functools.partialmethod(_in_place, operator.iadd)
    __isub__ = functools.partialmethod(_in_place, operator.isub)
    __imul__ = functools.partialmethod(_in_place, operator.imul)
    __itruediv__ = functools.partialmethod(_in_place, operator.itruediv)


class _Tracer(fx.Tracer):
    """Traces into everything it can; what it cannot trace stays one opaque node, to be reported with its reason."""

    def proxy(self, node):
        return _Proxy(node, self)

    def call_module(self, module, forward, args, kwargs):
        scope, stack = copy.copy(self.scope), copy.copy(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception as error:  # whatever a user's forward() does with a proxy instead of a tensor
            self.scope, self.module_stack = scope, stack  # torch.fx leaves them where the error happened
            node = self.create_proxy('call_module', self.path_of_module(module), args, kwargs)
            node.node.meta['untraceable'] = f'{type(error).__name__}: {error}'.splitlines()[0]
            return node


def trace(ann: nn.Module) -> fx.GraphModule:
    """Trace a copy of ``ann`` in evaluation mode, without dropout, in-place operations and checkpointing."""
    ann = copy.deepcopy(ann)
    in_place = {name for name, module in ann.named_modules() if getattr(module, 'inplace', False)}
    for module in ann.modules():
        module.training = False  # not ann.eval(): mmdet's backbones override train() and return nothing
        for option in ('inplace', 'with_cp'):  # OpenMMLab's gradient checkpointing branches on requires_grad
            if getattr(module, option, False):
                setattr(module, option, False)
    tracer = _Tracer()
    parameters = inspect.signature(ann.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        graph = tracer.trace(ann, concrete_args=defaults or None)
    except Exception as error:
        raise ConversionError(f'{type(ann).__name__} cannot be traced by torch.fx ({type(error).__name__}: {error}). '
                              'Its forward() must not branch on tensor values; see the documentation of torch.fx.'
                              ) from error
    network = fx.GraphModule(tracer.root, graph, type(ann).__name__)
    for node in list(graph.nodes):
        if node.target in ASSERTIONS:
            graph.erase_node(node)
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if changes_argument(node, in_place):
            _read_changed(node, position)
        if node.op == 'placeholder' and node.name.removesuffix('_1') in defaults and not node.users:
            graph.erase_node(node)
        elif node.op == 'call_function' and node.target is F.batch_norm:
            _batch_norm_as_module(network, node)
        elif isinstance(module_of(node), DROPOUTS) and len(node.all_input_nodes) == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == 'call_function':
            node.target = OUT_OF_PLACE.get(node.target, node.target)
            if node.kwargs.get('inplace'):
                node.update_kwarg('inplace', False)
            elif node.target in RELU_FUNCTIONS and len(node.args) > 1:
                node.args = node.args[:1]
        elif node.op == 'call_method' and node.target.endswith('_') and not node.target.endswith('__'):
            node.target = node.target[:-1]
    graph.eliminate_dead_code()
    network.recompile()
    return network


def _read_changed(node: fx.Node, position: dict[fx.Node, int]) -> None:
    """Let everything behind a node that changes its argument read the node instead of the argument.

    Raises:
        ConversionError: the argument is a view, and what it is a view of is read later.
    """
    def readers(changed: fx.Node) -> list[fx.Node]:
        return [user for user in changed.users if position.get(user, 0) > position[node]]

    changed: Any = node.args[0] if node.args else node.kwargs['input']
    for user in readers(changed):
        user.replace_input_with(changed, node)
    while is_view(changed):
        changed = changed.args[0]
        if readers(changed):
            raise ConversionError(f'{qualified_names(node)[0]} changes in place a part of {changed.name}, which '
                                  f'{readers(changed)[0].name} reads afterwards: use one that is not in place')


def _batch_norm_as_module(network: fx.GraphModule, node: fx.Node) -> None:
    """Turn ``F.batch_norm`` on a module's own tensors (as in timm) into a module, which folding can deal with."""
    names = ('input', 'running_mean', 'running_var', 'weight', 'bias', 'training', 'momentum', 'eps')
    arguments: dict[str, Any] = dict(zip(names, node.args)) | node.kwargs
    tensors = [arguments.get(name) for name in names[1:5]]
    if any(isinstance(tensor, fx.Node) and tensor.op != 'get_attr' for tensor in tensors) or None in tensors[:2]:
        return
    values: list[Any] = [None if tensor is None else operator.attrgetter(tensor.target)(network) for tensor in tensors]
    mean, variance, weight, bias = values
    norm = nn.BatchNorm2d(len(mean), eps=arguments.get('eps', 1e-5), affine=False).eval()
    norm.running_mean, norm.running_var, norm.weight, norm.bias = mean, variance, weight, bias
    name = f'{node.name}_as_module'
    network.add_module(name, norm)
    with network.graph.inserting_after(node):
        node.replace_all_uses_with(network.graph.call_module(name, (arguments['input'],)))
    network.graph.erase_node(node)


def fold_batch_norm(network: fx.GraphModule) -> None:
    """Fold every batch normalisation into the convolution or linear layer whose only user it is [Eq. 25].

    Going by the graph, not by the order in which modules were registered. A batch normalisation that stands
    elsewhere stays: in evaluation mode it is affine, so applying it at each step is exact.
    """
    calls = [node.target for node in network.graph.nodes if node.op == 'call_module']
    for node in list(network.graph.nodes):
        norm, layer_node = module_of(node), node.args[0] if node.args else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not isinstance(layer_node, fx.Node):
            continue
        layer = module_of(layer_node)
        if (norm.running_mean is None or not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
                or len(layer_node.users) > 1 or calls.count(layer_node.target) > 1):
            continue
        fuse: Callable[..., nn.Module] = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        replace_module(network, str(layer_node.target), fuse(layer, _with_affine(norm)))
        node.replace_all_uses_with(layer_node)
        network.graph.erase_node(node)


def _with_affine(norm: nn.Module) -> nn.Module:
    """Give a batch normalisation without scale and shift (``affine=False``) the neutral ones that fusing expects."""
    if norm.weight is None:
        norm.weight = nn.Parameter(norm.running_var.new_ones(norm.num_features))
    if norm.bias is None:
        norm.bias = nn.Parameter(norm.running_mean.new_zeros(norm.num_features))
    return norm


def pool_before_static_relu(network: fx.GraphModule) -> None:
    """Swap ``maxpool(relu(x))`` into ``relu(maxpool(x))`` where x does not vary in time, as in a ResNet's stem."""
    graph = network.graph
    varies = varying_nodes(graph)
    for pool in list(graph.nodes):
        relu = pool.args[0] if is_max_pool(pool) and pool.args else None
        if relu is None or relu_ceiling(relu) is None or len(relu.users) > 1 or relu.args[0] in varies:
            continue
        pool.update_arg(0, relu.args[0])
        pool.replace_all_uses_with(relu)
        pool.append(relu)  # moves the node
        relu.update_arg(0, pool)


def place_neurons(network: fx.GraphModule, include: list[str], exclude: list[str]) -> None:
    """Replace the selected ReLU call sites by neurons; refuse what is neither affine, excluded nor a max pooling."""
    graph = network.graph
    neurons = nn.Module()
    network.add_module('neurons', neurons)
    varies = varying_nodes(graph)
    unsupported, unmatched = [], set(include) | set(exclude)
    for node in list(graph.nodes):
        names = qualified_names(node)
        matched = {p for p in unmatched | set(include) | set(exclude) if any(fnmatch(name, p) for name in names)}
        ceiling = relu_ceiling(node)
        nonlinear = ceiling is not None or not (is_affine(node, varies) or is_max_pool(node))
        if not nonlinear:
            continue
        unmatched -= matched
        if matched.intersection(exclude) or not matched.intersection(include):
            continue
        if ceiling is None:
            unsupported.append(f'  {names[0]}: {_describe(node)}')
            continue
        name = node.name
        neurons.add_module(name, IFNeuron(ceiling))
        with graph.inserting_after(node):
            neuron = graph.call_module(f'neurons.{name}', (node.args[0] if node.args else node.kwargs['input'],))
        varies.add(neuron)
        node.replace_all_uses_with(neuron)
        graph.erase_node(node)
    if unsupported:
        raise ConversionError(
            'these operations are neither affine nor ReLU and have no spiking counterpart:\n'
            + '\n'.join(unsupported)
            + '\nReplace them in the ANN, or leave them analog with exclude=[...] (patterns like "layer4.*").')
    if unmatched - {'*'}:
        raise ValueError(f'include/exclude patterns that match no nonlinear call site: {sorted(unmatched)}')


def varying_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value will vary in time: all that lie behind a ReLU call site or a neuron."""
    varies: set[fx.Node] = set()
    for node in graph.nodes:
        starts = relu_ceiling(node) is not None or isinstance(module_of(node), IFNeuron)
        if starts or (not reads_shape(node) and varies.intersection(node.all_input_nodes)):
            varies.add(node)
    return varies


def qualified_names(node: fx.Node) -> list[str]:
    """Names a pattern can match: the module path of the call site (``layer1.0.relu``) and the node's own name."""
    if node.op == 'call_module':
        return [str(node.target), node.name]
    owners = list(node.meta.get('nn_module_stack', {}).items())
    path, module = owners[-1] if owners else ('', None)
    owner = module[0] if isinstance(module, tuple) else path  # torch 2.1: {path: class}, later {call: (path, class)}
    return [f'{owner}.{node.name}' if owner else node.name, node.name]


def _describe(node: fx.Node) -> str:
    if 'untraceable' in node.meta:
        return f'{type(module_of(node)).__name__}, cannot be traced ({node.meta["untraceable"]})'
    if node.op == 'call_module':
        return type(module_of(node)).__name__
    return f'{getattr(node.target, "__name__", node.target)}()'
