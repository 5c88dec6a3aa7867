"""ReLU and ReLU6 have many spellings; write those that are functions in one. So have the largest values."""
import math
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx

from ..simulation.rectifiers import clip_of, relu_ceiling


def spell_rectifiers(network: fx.GraphModule) -> None:
    """Write functions that clip at zero, and perhaps at a ceiling, as ``F.relu(x)`` or ``F.hardtanh(x, 0, ceiling)``.

    Two that follow each other, such as ``relu(x).clamp(max=6)``, become one.
    """
    for node in list(network.graph.nodes):
        clip = clip_of(node)
        if clip is None:
            continue
        inner = clip_of(clip.source) if len(clip.source.users) == 1 else None
        joined = clip if inner is None else clip._replace(
            source=inner.source, low=max(clip.low, inner.low), high=min(clip.high, inner.high))
        one = inner is not None and (relu_ceiling(node) is None or relu_ceiling(clip.source) is None)
        if inner and one and joined.low == 0 < joined.high and inner.low <= clip.high and inner.high >= clip.low:
            _write(node, joined.source, joined.high)
            network.graph.erase_node(clip.source)
        elif node.op != 'call_module' and clip.low == 0 < clip.high:
            _write(node, clip.source, clip.high)
    network.graph.lint()


def _write(node: fx.Node, source: fx.Node, ceiling: float) -> None:
    """Turn a node into the call of a rectifier; it keeps its name, by which patterns know it."""
    node.op, node.target = 'call_function', F.relu if math.isinf(ceiling) else F.hardtanh
    node.args, node.kwargs = (source,) if math.isinf(ceiling) else (source, 0., ceiling), {}


def spell_extremes(network: fx.GraphModule) -> None:
    """Write the largest or least values along a dimension, ``x.max(1)[0]``, as ``torch.amax(x, 1)``.

    ``max`` gives two tensors, of which a rate code can follow the first alone: nobody may ask where the values are.
    """
    for node in list(network.graph.nodes):
        extreme = EXTREMES.get(node.target)
        values = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0
                  or user.target is getattr and user.args[1] == 'values']
        if extreme is None or len(node.args) < 2 or not isinstance(node.args[1], int) or len(values) < len(node.users):
            continue
        node.op, node.target = 'call_function', extreme
        for user in values:
            user.replace_all_uses_with(node)
            network.graph.erase_node(user)


EXTREMES: dict[object, Callable] = {torch.max: torch.amax, 'max': torch.amax, torch.min: torch.amin, 'min': torch.amin}
