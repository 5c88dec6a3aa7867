"""How many dimensions traced values have, where the operations before them leave no doubt."""
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

COMPARISONS = {operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne}
FLATTEN = {'flatten', torch.flatten}
KEEPING = {'relu', torch.relu, F.relu, F.linear, F.dropout}  # as many as their first argument
KEEPING_MODULES = (nn.Linear, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity)
DIMENSIONS = {name: dimensions + 2 for dimensions in (1, 2, 3) for name in (
    f'Conv{dimensions}d', f'ConvTranspose{dimensions}d', f'MaxPool{dimensions}d', f'AvgPool{dimensions}d',
    f'AdaptiveAvgPool{dimensions}d')}


def compared_rank(node: fx.Node, root: nn.Module) -> bool | None:
    """The outcome of a comparison such as ``x.dim() > 2``, or None where it is none or nobody can know."""
    if node.target not in COMPARISONS or len(node.args) != 2:
        return None
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, int) or left.target not in ('dim', getattr):
        return None
    if left.target is getattr and left.args[1] != 'ndim':
        return None
    known = rank(left.args[0], root)
    compare: Any = node.target
    return None if known is None else compare(known, right)


def rank(node: Any, root: nn.Module) -> int | None:
    """The number of dimensions of a node's value, or None; ``root`` is what is being traced."""
    while isinstance(node, fx.Node) and node.args:
        module = root.get_submodule(str(node.target)) if node.op == 'call_module' else None
        flat = (module.start_dim, module.end_dim) if isinstance(module, nn.Flatten) else (*node.args[1:], -1)[:2]
        if (isinstance(module, nn.Flatten) or node.target in FLATTEN) and flat == (1, -1) and not node.kwargs:
            return 2
        if module is not None and type(module).__name__ in DIMENSIONS:
            return DIMENSIONS[type(module).__name__]
        if not isinstance(module, KEEPING_MODULES) and node.target not in KEEPING:
            return None
        node = node.args[0]
    return None
