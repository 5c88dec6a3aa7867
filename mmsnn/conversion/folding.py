"""Fold batch normalisation into the layer before it, and move the pooling of a stem before its neurons."""
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..neurons.integrate_and_fire import IFNeuron
from ..simulation.operations import is_max_pool, module_of, reads_shape, relu_ceiling, replace_module


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
