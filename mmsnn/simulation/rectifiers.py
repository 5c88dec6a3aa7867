"""Which call sites are ReLUs, in any of their spellings, and what lies behind them."""
import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..neurons.layer import IFNeuron
from .calls import arguments
from .operations import OUT_OF_PLACE, computes_as, module_of, reads_shape, source_of


def relu_ceiling(node: fx.Node) -> float | None:
    """Return the upper clip of a ReLU call site (infinity for ReLU, 6 for ReLU6), None for any other node."""
    clip = clip_of(node)
    return clip.high if clip is not None and clip.low == 0 and clip.high > 0 else None


class Clip(NamedTuple):
    """A clipping of one value to a range, minus infinity and infinity where it has no bound."""

    source: fx.Node
    low: float
    high: float


def clip_of(node: fx.Node) -> Clip | None:
    """Read a call as the clipping of a value to a range of numbers, in whatever spelling."""
    module: Any = module_of(node)
    if module is not None:
        return _clip_of_module(node, module)
    if node.op not in ('call_function', 'call_method'):
        return None
    name = getattr(node.target, '__name__', node.target) if node.op == 'call_function' else str(node.target)
    owner = OUT_OF_PLACE.get(node.target, node.target)
    if node.op == 'call_function' and owner not in _CLIPS:
        return None
    name, given = str(name).strip('_'), arguments(node)
    source, other = given.get('input'), given.get('other', given.get('1'))
    low, high = -math.inf, math.inf
    if name in ('relu', 'relu6'):
        low, high = 0., 6. if name == 'relu6' else high
    elif name == 'hardtanh':
        low, high = _number(given.get('min_val')), _number(given.get('max_val'))
    elif name in ('clamp', 'clip', 'clamp_min', 'clamp_max'):
        low, high = (fallback if given.get(key) is None else _number(given[key])
                     for key, fallback in (('min', low), ('max', high)))
    elif name in ('threshold', 'leaky_relu'):
        zero = all(_number(given.get(key, 0.)) == 0 for key in ('threshold', 'value', 'negative_slope'))
        low = 0. if zero else math.nan
    elif name in ('maximum', 'fmax', 'max', 'minimum', 'fmin', 'min') and isinstance(other, fx.Node):
        if math.isnan(_number(other)):
            source, other = other, source
        low, high = (_number(other), high) if name in ('maximum', 'fmax', 'max') else (low, _number(other))
    else:
        return None
    return Clip(source, low, high) if isinstance(source, fx.Node) else None


_CLIPS = {
    F.relu, torch.relu, F.relu6, F.hardtanh, torch.clamp, torch.clip, torch.clamp_min, torch.clamp_max, F.threshold,
    torch.threshold, F.leaky_relu, torch.maximum, torch.fmax, torch.max, torch.minimum, torch.fmin, torch.min}


def _clip_of_module(node: fx.Node, module: Any) -> Clip | None:
    zero = {nn.Threshold: ('threshold', 'value'), nn.LeakyReLU: ('negative_slope',), nn.ReLU: ()}
    if 'untraceable' in node.meta or not node.args:
        return None
    if computes_as(module, (nn.Hardtanh, nn.ReLU6)):
        return Clip(source_of(node), float(module.min_val), float(module.max_val))
    if any(computes_as(module, (kind,)) and all(getattr(module, name) == 0 for name in names)
           for kind, names in zero.items()):
        return Clip(source_of(node), 0., math.inf)
    return None


def _number(value: Any) -> float:
    """The number that an argument is, or all elements of a constant tensor are; NaN where there is none."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, fx.Node):
        return math.nan
    if value.target in (torch.zeros_like, torch.zeros, 'new_zeros'):
        return 0.
    if value.op == 'get_attr':
        stored = operator.attrgetter(str(value.target))(value.graph.owning_module)
        if isinstance(stored, Tensor) and stored.device.type != 'meta' and stored.numel():
            first = float(stored.detach().flatten()[0])
            return first if bool((stored == first).all()) else math.nan
    return math.nan


def varying_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value will vary in time: all that lie behind a ReLU call site or a neuron."""
    varies: set[fx.Node] = set()
    for node in graph.nodes:
        starts = relu_ceiling(node) is not None or isinstance(module_of(node), IFNeuron)
        if starts or (not reads_shape(node) and varies.intersection(node.all_input_nodes)):
            varies.add(node)
    return varies
