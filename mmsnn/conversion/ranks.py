"""What traced values are certain to be: how many dimensions they have, and that there are any."""
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..simulation.operations import DROPOUTS, NORMS, reads_shape
from .regions import ACTIVATION_MODULES, ACTIVATIONS, ARITHMETIC, called_name

COMPARISONS: dict[Any, Callable] = {function: function for function in (
    operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne)}
# As many as the largest of their operands, or their first argument.
KEEPING = ACTIVATIONS | ARITHMETIC | {
    'linear', 'dropout', 'interpolate', 'batch_norm', 'group_norm', 'layer_norm', 'softmax', 'pad', 'cat', 'concat',
    'iadd', 'isub', 'imul', 'itruediv', 'normalize', 'flip', 'roll', 'transpose'}
KEEPING_MODULES = (nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Softmax, nn.Upsample, *DROPOUTS, *NORMS,
                   *ACTIVATION_MODULES)
SHAPED, REDUCING = {'view', 'reshape', 'permute'}, {'sum', 'mean'}
DIMENSIONS = {name: dimensions + 2 for dimensions in (1, 2, 3) for name in (
    f'Conv{dimensions}d', f'ConvTranspose{dimensions}d', f'MaxPool{dimensions}d', f'AvgPool{dimensions}d',
    f'AdaptiveAvgPool{dimensions}d', f'AdaptiveMaxPool{dimensions}d',
    f'conv{dimensions}d', f'conv_transpose{dimensions}d', f'max_pool{dimensions}d', f'avg_pool{dimensions}d',
    f'adaptive_avg_pool{dimensions}d', f'adaptive_max_pool{dimensions}d')}


def compared_rank(node: fx.Node, root: nn.Module) -> bool | None:
    """The outcome of a comparison such as ``x.dim() > 2`` or ``x.numel() > 0``, or None where nobody can know.

    Sizes are at least 1: what a network does for an empty tensor, it need not do otherwise. What is missing to a
    multiple, such as ``max(pad, 0)``, is taken for positive: padding by nothing, and cutting it off, change nothing.
    """
    if _is_missing(node):
        return True
    if node.target not in COMPARISONS or len(node.args) != 2:
        return None
    left, right = node.args
    if not isinstance(left, fx.Node) or type(right) is not int:
        return None
    if right == 0 and (_is_size(left) or _is_missing(left)):
        return bool(COMPARISONS[node.target](1, 0))
    shape = left.target is len and isinstance(left.args[0], fx.Node) and reads_shape(left.args[0])
    if left.target == 'dim' or left.target is getattr and left.args[1] == 'ndim':
        known = rank(left.args[0], root)
    else:
        known = length(left.args[0], root) if shape else None
    return None if known is None else bool(COMPARISONS[node.target](known, right))


def length(node: Any, root: nn.Module) -> int | None:
    """How many numbers a shape, or a part of one such as ``x.shape[2:]``, has; None where nobody can know."""
    if node.target is getattr and node.args[1] == 'shape' or node.target == 'size' and len(node.args) == 1:
        return rank(node.args[0], root)
    if node.target is not operator.getitem or not isinstance(node.args[1], slice) or not reads_shape(node):
        return None
    part, whole = node.args[1], length(node.args[0], root)
    if whole is None and part.stop is None and part.step is None and isinstance(part.start, int) and part.start < 0:
        return -part.start  # the last few of however many
    return None if whole is None else len(range(whole)[part])


def rank(node: Any, root: nn.Module) -> int | None:
    """The number of dimensions of a node's value, or None; ``root`` is what is being traced."""
    if isinstance(node, fx.Node) and node.op == 'get_attr':
        return getattr(operator.attrgetter(str(node.target))(root), 'ndim', None)
    if not isinstance(node, fx.Node) or not node.args:
        return None
    module = root.get_submodule(str(node.target)) if node.op == 'call_module' else None
    name = type(module).__name__ if module is not None else called_name(node)
    flat = (module.start_dim, module.end_dim) if isinstance(module, nn.Flatten) else (*node.args[1:], -1)[:2]
    if name in ('Flatten', 'flatten') and flat == (1, -1) and not node.kwargs:
        return 2
    if name in DIMENSIONS:
        return DIMENSIONS[name]
    if module is None and name in SHAPED:
        sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        return len(sizes) if not any(isinstance(size, fx.Node) and length(size, root) for size in sizes) else None
    if module is None and name in REDUCING and isinstance(node.kwargs.get('dim', (*node.args, None)[1]), int):
        inner = rank(node.args[0], root)
        return inner if inner is None or node.kwargs.get('keepdim', (*node.args, None, None)[2]) else inner - 1
    if isinstance(module, KEEPING_MODULES):
        return rank(node.args[0], root)
    if module is None and name in KEEPING:
        ranks = [rank(value, root) for value in node.all_input_nodes if not reads_shape(value)]
        return None if not ranks or None in ranks else max(filter(None, ranks))
    return None


def _is_missing(node: fx.Node) -> bool:
    """True for how much a size lacks: ``max(pad, 0)``, ``(n - size % n) % n`` or ``-size % n``."""
    if node.target is max:
        return 0 in node.args and reads_shape(node)
    left = node.args[0] if node.target is operator.mod else None
    return isinstance(left, fx.Node) and left.target in (operator.sub, operator.neg) and reads_shape(node)


def _is_size(node: fx.Node) -> bool:
    """True for a number of elements, or the size of one dimension."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return isinstance(node.args[1], int) and reads_shape(node.args[0])
    return node.target in ('numel', len) or node.target == 'size' and len(node.args) + len(node.kwargs) > 1
