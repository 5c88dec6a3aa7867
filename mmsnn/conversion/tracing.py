"""Trace a network with torch.fx into a graph without dropout, in-place operations and checkpointing."""
import copy
import itertools
import keyword
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..simulation.calls import normalise, set_argument
from ..simulation.operations import (
    ASSERTIONS,
    OUT_OF_PLACE,
    assigned,
    changes_argument,
    is_dropout,
    is_view,
    reads_shape,
    source_of,
)
from .attention import open_attention
from .baking import bake_weights
from .folding import qualified_names
from .sizes import SizedTracer
from .tracers import Tracer

# What cannot be traced into, by the names of classes, and what to pass in its place.
WRAPPERS = dict.fromkeys(('DataParallel', 'DistributedDataParallel', 'FullyShardedDataParallel'),
                         'pass .module, the network in it') | {
    'OptimizedModule': 'pass ._orig_mod, the network that torch.compile was given',
    'SpikingNetwork': 'it spikes already; pass the ANN that it was made from',
    'ScriptModule': 'torch.jit has scripted or traced it; pass the network that it was made from'}
QUANTISED = tuple(f'torch{ao}.nn{kind}.quantized' for ao in ('', '.ao') for kind in ('', '.intrinsic'))


class ConversionError(ValueError):
    """The network holds operations that have no spiking counterpart; the message lists every one."""


def trace(ann: nn.Module, example: Any = None, open_layers: bool = False) -> fx.GraphModule:
    """Trace a copy of ``ann`` in evaluation mode, without dropout, in-place operations and checkpointing.

    Args:
        ann: the network.
        example: an input, its shape, or several inputs, whose sizes decide where ``forward`` decides by sizes.
        open_layers: whether torch's attention and transformer layers become what they consist of.

    Raises:
        ConversionError: it is wrapped or compiled, in 16 bits, or its ``forward`` cannot be traced.
    """
    refuse(ann)
    # What hooks have computed from parameters (pruned weights) cannot be copied where it has a gradient.
    computed = {id(value): value.detach().clone() for module in ann.modules() for value in vars(module).values()
                if isinstance(value, Tensor) and not value.is_leaf}
    ann = copy.deepcopy(ann, computed)
    in_place = {name for name, module in ann.named_modules() if getattr(module, 'inplace', False)}
    for module in ann.modules():
        module.training = False  # not ann.eval(): mmdet's backbones override train() and return nothing
        for option in ('inplace', 'with_cp'):  # OpenMMLab's gradient checkpointing branches on requires_grad
            if getattr(module, option, False):
                setattr(module, option, False)
    bake_weights(ann)
    if open_layers:
        open_attention(ann)
    tracer = Tracer() if example is None else SizedTracer(example)
    try:
        graph = tracer.trace(ann)
    except Exception as error:
        raise ConversionError(f'{type(ann).__name__} cannot be traced by torch.fx ({type(error).__name__}: {error}). '
                              'Its forward() must not branch on tensor values; see the documentation of torch.fx. '
                              'Where it branches on sizes, pass an input: example=...') from error
    graph._tracer_cls = Tracer  # which unpickling calls, without an example
    _rename(tracer.root, graph)
    network = fx.GraphModule(tracer.root, graph, type(ann).__name__)
    for node in list(graph.nodes):
        if node.target in ASSERTIONS:
            graph.erase_node(node)
        else:
            normalise(node)
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is operator.setitem or node.target == '__setitem__':
            node.op, node.target = 'call_function', assigned
        if node.target is assigned or changes_argument(node, in_place) and not _is_put_back(node):
            _read_changed(node, position)
        if is_dropout(node) and node.args:
            node.replace_all_uses_with(source_of(node))
            graph.erase_node(node)
        elif node.op == 'call_function':
            node.target = OUT_OF_PLACE.get(node.target, node.target)
            set_argument(node, 'inplace', False)
        elif node.op == 'call_method' and node.target.endswith('_') and not node.target.endswith('__'):
            node.target = node.target[:-1]
    graph.eliminate_dead_code()
    network.recompile()
    return network


def _rename(root: nn.Module, graph: fx.Graph) -> None:
    """Give other names to what cannot keep its own: 'class' in the program of a graph, 'neurons' beside the neurons."""
    for node in graph.nodes:
        if node.op in ('call_module', 'get_attr'):
            module, path = root, []
            for name in node.target.split('.'):
                value, new = getattr(module, name), name
                while keyword.iskeyword(new) or (module is root and new == 'neurons') or getattr(
                        module, new, value) is not value:
                    new += '_'
                if new != name:
                    setattr(module, new, value)
                path.append(new)
                module = value
            node.target = '.'.join(path)


def refuse(ann: nn.Module) -> None:
    """Refuse networks that are wrapped, compiled, quantised, or of half precision.

    Raises:
        ConversionError: saying what to pass instead.
    """
    for name, module in ann.named_modules():
        found = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in WRAPPERS), None)
        if found and not (name and found == 'ScriptModule'):  # which may be left analog where it is a part
            raise ConversionError(f"{name or 'the network'} is a {type(module).__name__}, which cannot be traced by "
                                  f'torch.fx: {WRAPPERS[found]}')
        if type(module).__module__.startswith(QUANTISED):
            raise ConversionError(f"{name or 'the network'} is a quantised {type(module).__name__}, whose weights are "
                                  "packed away: pass the network before quantisation; dtype='int8' then simulates on "
                                  'bytes')
    for path, value in itertools.chain(ann.named_parameters(), ann.named_buffers()):
        if value.dtype in (torch.float16, torch.bfloat16):
            raise ConversionError(f'{path} is in {value.dtype}, too coarse for sums of many steps: convert a float32 '
                                  "copy, model.float(); dtype='bfloat16' then simulates in bfloat16")


def _is_put_back(node: fx.Node) -> bool:
    """True in ``x[i] += 1``, which Python takes apart: a part of x is changed, then assigned to where it was."""
    part = source_of(node)
    return len(node.users) == 1 and part.target is operator.getitem and all(
        user.target in (operator.setitem, assigned) and user.args == (*part.args, node) for user in node.users)


def _overwrites(node: fx.Node, part: fx.Node) -> bool:
    """True for ``x[i] = ...`` where the part is ``x[i]``: whatever stood there is not read."""
    return (node.target in (operator.setitem, assigned) and part.target is operator.getitem
            and node.args[:2] == part.args)


def _read_changed(node: fx.Node, position: dict[fx.Node, int]) -> None:
    """Let everything behind a node that changes its argument read the node instead of the argument.

    Raises:
        ConversionError: the argument is a view, and what it is a view of is read later, unless it is overwritten.
    """
    def readers(changed: fx.Node) -> list[fx.Node]:
        return [user for user in changed.users if position.get(user, 0) > position[node]]

    changed = source_of(node)
    for user in readers(changed):
        user.replace_input_with(changed, node)
    while is_view(changed) and isinstance(source_of(changed), fx.Node):
        part, changed = changed, source_of(changed)
        values = (user for user in readers(changed) if not reads_shape(user))
        later = min(values, key=position.__getitem__, default=None)
        if later is not None and not _overwrites(later, part):
            raise ConversionError(f'{qualified_names(node)[0]} changes in place a part of {changed.name}, which '
                                  f'{later.name} reads afterwards: use one that is not in place')
    if changed.op == 'get_attr' and (node.target is assigned or not node.users):
        raise ConversionError(f'{qualified_names(node)[0]} changes in place {changed.target}, which does not depend on '
                              'the input: use one that is not in place, such as torch.cat or torch.where')
