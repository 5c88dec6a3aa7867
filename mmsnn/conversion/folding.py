"""Fold batch normalisation into the layer before it, and move the pooling of a stem before its neurons."""
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..simulation.operations import CONVOLUTIONS, computes_as, is_max_pool, module_of
from ..simulation.rectifiers import relu_ceiling, varying_nodes


@torch.no_grad()
def fold_batch_norm(network: fx.GraphModule) -> None:
    """Fold every batch normalisation into the convolution or linear layer whose only user it is [Eq. 25].

    Going by the graph, not by the order in which modules were registered. A batch normalisation that stands
    elsewhere stays: in evaluation mode it is affine, so applying it at each step is exact.
    """
    calls = [node.target for node in network.graph.nodes if node.op == 'call_module']
    read = [str(node.target) for node in network.graph.nodes if node.op == 'get_attr']
    for node in list(network.graph.nodes):
        norm, layer_node = module_of(node), node.args[0] if node.args else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not isinstance(layer_node, fx.Node):
            continue
        layer = module_of(layer_node)
        shared = len(layer_node.users) > 1 or calls.count(layer_node.target) > 1 or any(
            name.startswith(f'{layer_node.target}.') for name in read)
        if layer is None or shared or 'untraceable' in layer_node.meta or not _can_fold(layer, norm):
            continue
        fold_into(layer, norm)
        node.replace_all_uses_with(layer_node)
        network.graph.erase_node(node)


def _can_fold(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """True for plain layers and running statistics, where nothing else happens when either is called.

    Behind a linear layer on sequences, (N, L, C), a norm of L channels normalises tokens, of which the layer has none.
    """
    hooks = [hooks for module in (layer, norm) for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    return (computes_as(layer, (nn.Linear, *CONVOLUTIONS)) and isinstance(layer.weight, nn.Parameter)
            and norm.running_mean is not None and norm.running_var is not None and not any(hooks)
            and (not isinstance(layer, nn.Linear) or layer.out_features == norm.num_features))


def fold_into(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Scale and shift a convolution or linear layer, in place, as a batch normalisation behind it does."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = torch.ones_like(variance) if norm.weight is None else norm.weight
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if isinstance(layer, nn.Linear):
        bias = torch.zeros_like(mean) if bias is None else bias
        folded = fuse_linear_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
        layer.weight, layer.bias = map(_constant, folded)  # type: ignore[assignment]
        return
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if transposed:  # (C_in, C_out / groups, ...) to (C_out, C_in / groups, ...)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    if transposed:
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
    layer.weight, layer.bias = _constant(weight), _constant(bias)  # type: ignore[assignment]


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


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


def qualified_names(node: fx.Node) -> list[str]:
    """Names a pattern can match: the module path of the call site (``layer1.0.relu``) and the node's own name."""
    if node.op == 'call_module':
        return [str(node.target), node.name]
    owners = list(node.meta.get('nn_module_stack', {}).items())
    path, module = owners[-1] if owners else ('', None)
    owner = module[0] if isinstance(module, tuple) else path  # torch 2.1: {path: class}, later {call: (path, class)}
    return [f'{owner}.{node.name}' if owner else node.name, node.name]
