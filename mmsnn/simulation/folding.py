"""Which operations may work on several time steps at once.

Time is an axis of its own, which no operation of the network sees. Running an operation once for each step is always
right. It is faster to run it once for all, and that is done only where this changes nothing for certain: ``MERGED``
operations treat each entry of dimension 0 for itself, so that time may be merged with it whatever it means to the
network, and ``BROADCAST`` ones treat each number for itself. An operation that is not listed here is merely slower.
"""
import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .operations import module_of

MERGED, BROADCAST, EACH_STEP = 'merged', 'broadcast', 'each step'

# Modules by the number of dimensions of an input with a batch; without one they take dimension 0 for channels.
_BATCHED: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Conv1d: (3,), nn.Conv2d: (4,), nn.Conv3d: (5,),
    nn.ConvTranspose1d: (3,), nn.ConvTranspose2d: (4,), nn.ConvTranspose3d: (5,),
    nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,), nn.SyncBatchNorm: (2, 3, 4, 5),
    nn.AvgPool1d: (3,), nn.AvgPool2d: (4,), nn.AvgPool3d: (5,), nn.AdaptiveAvgPool1d: (3,),
    nn.AdaptiveAvgPool2d: (4,), nn.AdaptiveAvgPool3d: (5,), nn.Linear: (2, 3, 4, 5), nn.Upsample: (3, 4, 5),
    nn.PixelShuffle: (4,), nn.PixelUnshuffle: (4,), nn.ZeroPad1d: (3,), nn.ZeroPad2d: (4,), nn.ZeroPad3d: (5,),
    nn.ConstantPad1d: (3,), nn.ConstantPad2d: (4,), nn.ConstantPad3d: (5,), nn.ReflectionPad1d: (3,),
    nn.ReflectionPad2d: (4,), nn.ReplicationPad1d: (3,), nn.ReplicationPad2d: (4,),
    nn.MaxPool1d: (3,), nn.MaxPool2d: (4,), nn.MaxPool3d: (5,), nn.AdaptiveMaxPool2d: (4,),
    nn.InstanceNorm1d: (3,), nn.InstanceNorm2d: (4,), nn.InstanceNorm3d: (5,), nn.GroupNorm: (2, 3, 4, 5)}
_BATCHED_FUNCTIONS: dict[object, tuple[int, ...]] = {
    F.conv1d: (3,), F.conv2d: (4,), F.conv3d: (5,), F.linear: (2, 3, 4, 5), F.avg_pool1d: (3,), F.avg_pool2d: (4,),
    F.avg_pool3d: (5,), F.adaptive_avg_pool1d: (3,), F.adaptive_avg_pool2d: (4,), F.adaptive_avg_pool3d: (5,),
    F.interpolate: (3, 4, 5), F.pixel_shuffle: (4,), F.pixel_unshuffle: (4,), F.group_norm: (2, 3, 4, 5),
    F.max_pool1d: (3,), F.max_pool2d: (4,), F.max_pool3d: (5,)}
_ELEMENTWISE = {operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pos, torch.add,
                torch.sub, torch.mul, torch.div, torch.neg, 'add', 'sub', 'mul', 'div', 'neg', 'float', 'contiguous',
                'clone', 'detach'}
_OVER_DIMENSIONS = {torch.mean: 1, torch.sum: 1, 'mean': 1, 'sum': 1}  # where the dimensions stand among the arguments
# Where the one dimension that they work along stands among the arguments.
_ALONG_DIMENSION = {torch.softmax: 1, F.softmax: 1, 'softmax': 1}
_CONCATENATIONS = {torch.cat, torch.concat}


def folding_of(node: fx.Node, varies: Collection[fx.Node], dimensions: Mapping[fx.Node, int]) -> str:
    """How a node may be computed for several steps.

    Args:
        node: a node that varies in time and computes each step from the values of that step alone.
        varies: all nodes that do.
        dimensions: the number of dimensions that the tensor of each node has at one step.

    Returns:
        ``MERGED``, ``BROADCAST`` or ``EACH_STEP``.
    """
    inputs = [arg for arg in node.all_input_nodes if arg in varies]
    if not all(dimensions.get(arg) for arg in (*inputs, node)):  # numbers, tuples, and tensors without dimensions
        return EACH_STEP
    own = {dimensions[arg] for arg in inputs}
    if node.op != 'call_module' and node.target in _ELEMENTWISE:
        if any(isinstance(value, torch.memory_format) for value in (*node.args, *node.kwargs.values())):
            return EACH_STEP  # channels last belongs to maps of four dimensions
        static = [dimensions.get(arg, 0) for arg in node.all_input_nodes if arg not in varies]
        return BROADCAST if len(own) == 1 and max(static, default=0) <= max(own) else EACH_STEP
    if len(own) == 1 and _keeps_dimension_0(node, inputs, max(own)):
        return MERGED
    return EACH_STEP


def _keeps_dimension_0(node: fx.Node, inputs: list[fx.Node], dimensions: int) -> bool:
    """Whether each entry of dimension 0 is treated for itself, in a node whose varying inputs have ``dimensions``."""
    arguments: Any = node.args
    if node.op == 'call_function' and node.target in _CONCATENATIONS:
        tensors = arguments[0] if arguments else ()
        axis = node.kwargs.get('dim', arguments[1] if len(arguments) > 1 else 0)
        return set(tensors) == set(inputs) and isinstance(axis, int) and axis % dimensions > 0
    if not arguments or inputs != [arguments[0]]:  # weights that vary, an input by keyword
        return False
    module = module_of(node)
    if module is not None:
        if isinstance(module, nn.Flatten):
            return module.start_dim > 0
        if isinstance(module, nn.LayerNorm):
            return len(module.normalized_shape) < dimensions
        if isinstance(module, nn.Softmax):
            return isinstance(module.dim, int) and module.dim % dimensions > 0
        return any(isinstance(module, kind) and dimensions in allowed for kind, allowed in _BATCHED.items())
    if node.target in _BATCHED_FUNCTIONS:
        return dimensions in _BATCHED_FUNCTIONS[node.target]
    if node.target is F.pad:
        pads = node.kwargs.get('pad', arguments[1] if len(arguments) > 1 else None)
        return isinstance(pads, (tuple, list)) and len(pads) < 2 * dimensions
    if node.target in (torch.flatten, 'flatten'):
        start: Any = node.kwargs.get('start_dim', arguments[1] if len(arguments) > 1 else 0)
        return isinstance(start, int) and start > 0
    if node.target is F.layer_norm:
        shape = node.kwargs.get('normalized_shape', arguments[1] if len(arguments) > 1 else None)
        return isinstance(shape, (tuple, list)) and len(shape) < dimensions
    if node.target in _ALONG_DIMENSION:
        axis = node.kwargs.get('dim', arguments[1] if len(arguments) > 1 else None)
        return isinstance(axis, int) and axis % dimensions > 0
    if node.target in _OVER_DIMENSIONS:
        place = _OVER_DIMENSIONS[node.target]
        axes = node.kwargs.get('dim', arguments[place] if len(arguments) > place else None)
        axes = (axes,) if isinstance(axes, int) else axes
        return isinstance(axes, (tuple, list)) and all(isinstance(a, int) and a % dimensions > 0 for a in axes)
    if node.target is operator.getitem:
        index = arguments[1]
        return (isinstance(index, tuple) and len(index) > 1 and index[0] == slice(None)
                and all(isinstance(part, (int, slice)) or part is Ellipsis for part in index)
                and not any(isinstance(bound, fx.Node) for part in index if isinstance(part, slice)
                            for bound in (part.start, part.stop, part.step)))
    return False
