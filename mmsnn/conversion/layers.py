"""Turn functions on constant weights into the modules that they are, so that all that follows sees one form."""
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..simulation.calls import arguments

CONVOLUTIONS: dict[object, type[nn.Module]] = {
    F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d, F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d, F.conv_transpose3d: nn.ConvTranspose3d}
# By the names of the weights among their arguments.
PRODUCTS: dict[object, str] = {operator.matmul: 'b', torch.matmul: 'other', 'matmul': 'other', torch.mm: 'mat2',
                               'mm': 'mat2', torch.addmm: 'mat2', 'addmm': 'mat2'}


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of inputs with any number of dimensions, as ``F.batch_norm``."""

    def _check_input_dim(self, _input: Tensor) -> None:
        pass


def layers_from_functions(network: fx.GraphModule) -> None:
    """Turn convolutions, linear layers and batch normalisations in functional form into modules.

    A subclass with a ``forward`` of its own (TensorFlow-like padding, standardised weights) is traced into, and becomes
    such a function. A call whose weights are not constant stays as it is. Calls on the same weights share a module.
    """
    made: dict[Any, str] = {}
    for node in list(network.graph.nodes):
        if node.op not in ('call_function', 'call_method'):
            continue
        given = arguments(node)
        source = given.get('mat1', given.get('a', given.get('input')))
        name, layer = None, None
        if isinstance(source, fx.Node):
            key = node.target, tuple((k, v if isinstance(v, fx.Node) else repr(v)) for k, v in given.items()
                                     if v is not source)
            name = made.get(key)
            layer = _layer(network, node, given) if name is None else None
        if layer is not None:
            name = made[key] = f'{node.name}_as_module'
            network.add_module(name, layer.eval().requires_grad_(False))
        if name is not None:
            with network.graph.inserting_after(node):
                call = network.graph.call_module(name, (source,))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call)
            network.graph.erase_node(node)


def _layer(network: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> nn.Module | None:
    """The module that a function is, or None where it is none or has arguments that are not constant."""
    tensors = {key: value for key, value in given.items() if isinstance(value, fx.Node) and value.op == 'get_attr'}
    varying = [value for key, value in given.items() if key not in tensors and isinstance(value, fx.Node)]
    if len(varying) != 1:
        return None
    values = given | {key: operator.attrgetter(str(value.target))(network) for key, value in tensors.items()}
    if node.target is F.batch_norm:
        return _batch_norm(values) if values['running_mean'] is not None and not values['training'] else None
    if node.target in (*CONVOLUTIONS, F.linear):
        if 'weight' not in tensors or values['input'] is not varying[0] or values['weight'].ndim < 2:
            return None
        return _linear(values['weight'], values['bias']) if node.target is F.linear else _convolution(
            CONVOLUTIONS[node.target], values)
    matrix = values.get(PRODUCTS.get(node.target, ''))
    if isinstance(matrix, Tensor) and matrix.ndim == 2:
        if 'mat1' not in given:
            return _linear(matrix.t(), None)
        bias = values['input']
        if isinstance(bias, Tensor) and bias.ndim == 1 and given['beta'] == given['alpha'] == 1:
            return _linear(matrix.t(), bias.expand(matrix.shape[1]))
    return None


def _parameter(value: Tensor | None) -> nn.Parameter | None:
    if value is None or isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device='meta')
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)  # type: ignore[assignment]
    return layer


def _convolution(kind: Any, values: dict[str, Any]) -> nn.Module | None:
    weight, bias, groups = values['weight'], values['bias'], values['groups']
    options = {name: values[name] for name in ('stride', 'padding', 'output_padding', 'dilation') if name in values}
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    if 'output_padding' in options:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
    for name, value in options.items():  # torch takes one number for all dimensions, in a tuple of one too
        if isinstance(value, (tuple, list)):
            options[name] = tuple(value) if len(value) > 1 else value[0]
    layer = kind(inputs, outputs, tuple(weight.shape[2:]), groups=groups, bias=bias is not None, device='meta',
                 **options)
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)
    return layer


def _batch_norm(values: dict[str, Any]) -> nn.Module:
    mean = values['running_mean']
    norm = BatchNorm(len(mean), eps=values['eps'], affine=False, device='meta')
    norm.running_mean, norm.running_var = mean, values['running_var']
    norm.num_batches_tracked = mean.new_zeros((), dtype=torch.long)
    norm.weight, norm.bias = _parameter(values['weight']), _parameter(values['bias'])  # type: ignore[assignment]
    return norm
