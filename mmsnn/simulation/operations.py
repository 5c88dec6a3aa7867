"""Which operations of a traced network commute with the mean over time, and which are ReLU call sites.

A spiking network computes ``mean_t f(s(t))`` where the ANN computes ``f(x)``. The two agree when f is affine, so
every such operation is simply applied at each time step. ReLU becomes a neuron, and everything else is "nonlinear".
"""
import math
import operator
from typing import cast

import torch
import torch.nn.functional as F
from torch import fx, nn

RELU_MODULES = (nn.ReLU, nn.ReLU6)
RELU_FUNCTIONS: dict[object, float] = {
    F.relu: math.inf, F.relu_: math.inf, torch.relu: math.inf, torch.relu_: math.inf, F.relu6: 6.}
RELU_METHODS = ('relu', 'relu_')

MAX_POOL_MODULES = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
MAX_POOL_FUNCTIONS = (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
                      F.adaptive_max_pool1d, F.adaptive_max_pool2d)

# In evaluation mode: dropout is the identity, batch normalisation uses its running statistics.
AFFINE_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Identity, nn.Flatten, nn.Unflatten,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.Upsample)
AFFINE_FUNCTIONS = {
    F.conv1d, F.conv2d, F.conv3d, F.linear, F.pad, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.interpolate, F.dropout, F.dropout2d,
    F.batch_norm, F.pixel_shuffle, F.pixel_unshuffle,
    operator.add, operator.iadd, operator.sub, operator.isub, operator.neg, operator.pos, operator.getitem,
    torch.add, torch.sub, torch.neg, torch.cat, torch.concat, torch.stack, torch.flatten, torch.mean, torch.sum,
    torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk, torch.split,
    torch.narrow, torch.roll, torch.flip, torch.zeros_like}
AFFINE_METHODS = {
    'add', 'add_', 'sub', 'sub_', 'neg', 'flatten', 'mean', 'sum', 'reshape', 'view', 'permute', 'transpose', 't',
    'squeeze', 'unsqueeze', 'chunk', 'split', 'narrow', 'contiguous', 'clone', 'detach', 'to', 'float', 'type_as',
    'expand', 'expand_as', 'repeat', 'roll', 'flip', 'unflatten'}
# Affine in one operand when the other does not change in time.
PRODUCTS = {operator.mul, operator.imul, torch.mul, 'mul', 'mul_', torch.matmul, operator.matmul, 'matmul'}
QUOTIENTS = {operator.truediv, operator.itruediv, torch.div, 'div', 'div_'}
# They read shapes, not values.
SHAPE_METHODS = {'size', 'dim', 'numel'}

OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
                operator.itruediv: operator.truediv, F.relu_: F.relu, torch.relu_: torch.relu}
VIEWS = {operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
         torch.chunk, torch.split, torch.narrow, 'flatten', 'reshape', 'view', 'permute', 'transpose', 't', 'squeeze',
         'unsqueeze', 'chunk', 'split', 'narrow', 'contiguous', 'detach', 'expand', 'expand_as', 'unflatten'}
DROPOUTS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# Checks of shapes, and of arguments that tracing has fixed; they compute nothing.
ASSERTIONS = (torch._assert, fx._symbolic_trace._assert_is_none)


def module_of(node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node calls, else None."""
    if node.op != 'call_module':
        return None
    assert node.graph.owning_module is not None
    return node.graph.owning_module.get_submodule(str(node.target))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of one, as ``set_submodule`` of torch 2.5."""
    parent, _, own = name.rpartition('.')
    setattr(model.get_submodule(parent), own, module)


def source_of(node: fx.Node) -> fx.Node:
    """Return the node that an operation on one value works on."""
    return cast(fx.Node, node.args[0])


def relu_ceiling(node: fx.Node) -> float | None:
    """Return the upper clip of a ReLU call site (infinity for ReLU, 6 for ReLU6), None for any other node."""
    module = module_of(node)
    if isinstance(module, RELU_MODULES):
        return 6. if isinstance(module, nn.ReLU6) else math.inf
    if node.op == 'call_function':
        return RELU_FUNCTIONS.get(node.target)
    if node.op == 'call_method' and node.target in RELU_METHODS:
        return math.inf
    return None


def changes_argument(node: fx.Node, in_place: set[str]) -> bool:
    """True for operations in place on a tensor; ``in_place`` names the modules that were made to work in place."""
    if node.op == 'call_module':
        return node.target in in_place
    if node.op == 'call_method':
        name = str(node.target)
        return name.endswith('_') and not name.endswith('__')
    if node.op != 'call_function' or reads_shape(node):
        return False
    positional = node.target in RELU_FUNCTIONS and len(node.args) > 1 and node.args[1]
    return node.target in OUT_OF_PLACE or bool(node.kwargs.get('inplace') or positional)


def is_view(node: fx.Node) -> bool:
    """True where a node's value shares, or may share, its memory with the node's argument."""
    return node.target in VIEWS or isinstance(module_of(node), (nn.Flatten, nn.Unflatten))


def is_max_pool(node: fx.Node) -> bool:
    if node.op == 'call_module':
        module = module_of(node)
        return isinstance(module, MAX_POOL_MODULES) and not module.return_indices
    return node.op == 'call_function' and node.target in MAX_POOL_FUNCTIONS and not node.kwargs.get('return_indices')


def reads_shape(node: fx.Node) -> bool:
    """True for nodes whose value is made of sizes: ``x.size(0)``, ``x.shape``, and arithmetic on them."""
    if node.op == 'call_method' and node.target in SHAPE_METHODS:
        return True
    if node.op != 'call_function':
        return False
    if node.target is getattr:
        return node.args[1] in ('shape', 'ndim', 'device', 'dtype')
    return bool(node.all_input_nodes) and all(map(reads_shape, node.all_input_nodes))


def is_affine(node: fx.Node, varies: set[fx.Node]) -> bool:
    """True where the node is an affine function of those of its inputs that vary in time (the set ``varies``)."""
    if node.op in ('placeholder', 'get_attr', 'output') or reads_shape(node):
        return True
    module = module_of(node)
    if module is not None:
        if isinstance(module, nn.Upsample):
            return module.mode in ('nearest', 'nearest-exact', 'linear', 'bilinear', 'bicubic', 'trilinear')
        return isinstance(module, AFFINE_MODULES)
    if node.target in PRODUCTS:
        return sum(arg in varies for arg in node.args if isinstance(arg, fx.Node)) <= 1
    if node.target in QUOTIENTS:
        return not (len(node.args) > 1 and node.args[1] in varies)
    return node.target in (AFFINE_FUNCTIONS if node.op == 'call_function' else AFFINE_METHODS)
