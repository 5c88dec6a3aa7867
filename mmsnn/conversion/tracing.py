"""Trace a network with torch.fx into a graph without dropout, in-place operations and checkpointing."""
import copy
import functools
import inspect
import operator
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from ..simulation.operations import (
    ASSERTIONS,
    DROPOUTS,
    OUT_OF_PLACE,
    RELU_FUNCTIONS,
    changes_argument,
    is_view,
    module_of,
)
from .folding import _batch_norm_as_module, qualified_names


class ConversionError(ValueError):
    """The network holds operations that have no spiking counterpart; the message lists every one."""


class _Proxy(fx.Proxy):
    """Records ``+=`` and the like as what they are; torch.fx records an addition that leaves its operand alone."""

    def _in_place(self, operation, other):
        return self.tracer.create_proxy('call_function', operation, (self, other), {})

    __iadd__ = functools.partialmethod(_in_place, operator.iadd)
    __isub__ = functools.partialmethod(_in_place, operator.isub)
    __imul__ = functools.partialmethod(_in_place, operator.imul)
    __itruediv__ = functools.partialmethod(_in_place, operator.itruediv)


class _Tracer(fx.Tracer):
    """Traces into everything it can; what it cannot trace stays one opaque node, to be reported with its reason."""

    def proxy(self, node):
        return _Proxy(node, self)

    def call_module(self, module, forward, args, kwargs):
        scope, stack = copy.copy(self.scope), copy.copy(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception as error:  # whatever a user's forward() does with a proxy instead of a tensor
            self.scope, self.module_stack = scope, stack  # torch.fx leaves them where the error happened
            node = self.create_proxy('call_module', self.path_of_module(module), args, kwargs)
            node.node.meta['untraceable'] = f'{type(error).__name__}: {error}'.splitlines()[0]
            return node


def trace(ann: nn.Module) -> fx.GraphModule:
    """Trace a copy of ``ann`` in evaluation mode, without dropout, in-place operations and checkpointing."""
    ann = copy.deepcopy(ann)
    in_place = {name for name, module in ann.named_modules() if getattr(module, 'inplace', False)}
    for module in ann.modules():
        module.training = False  # not ann.eval(): mmdet's backbones override train() and return nothing
        for option in ('inplace', 'with_cp'):  # OpenMMLab's gradient checkpointing branches on requires_grad
            if getattr(module, option, False):
                setattr(module, option, False)
    tracer = _Tracer()
    parameters = inspect.signature(ann.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        graph = tracer.trace(ann, concrete_args=defaults or None)
    except Exception as error:
        raise ConversionError(f'{type(ann).__name__} cannot be traced by torch.fx ({type(error).__name__}: {error}). '
                              'Its forward() must not branch on tensor values; see the documentation of torch.fx.'
                              ) from error
    network = fx.GraphModule(tracer.root, graph, type(ann).__name__)
    for node in list(graph.nodes):
        if node.target in ASSERTIONS:
            graph.erase_node(node)
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if changes_argument(node, in_place):
            _read_changed(node, position)
        if node.op == 'placeholder' and node.name.removesuffix('_1') in defaults and not node.users:
            graph.erase_node(node)
        elif node.op == 'call_function' and node.target is F.batch_norm:
            _batch_norm_as_module(network, node)
        elif isinstance(module_of(node), DROPOUTS) and len(node.all_input_nodes) == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == 'call_function':
            node.target = OUT_OF_PLACE.get(node.target, node.target)
            if node.kwargs.get('inplace'):
                node.update_kwarg('inplace', False)
            elif node.target in RELU_FUNCTIONS and len(node.args) > 1:
                node.args = node.args[:1]
        elif node.op == 'call_method' and node.target.endswith('_') and not node.target.endswith('__'):
            node.target = node.target[:-1]
    graph.eliminate_dead_code()
    network.recompile()
    return network


def _read_changed(node: fx.Node, position: dict[fx.Node, int]) -> None:
    """Let everything behind a node that changes its argument read the node instead of the argument.

    Raises:
        ConversionError: the argument is a view, and what it is a view of is read later.
    """
    def readers(changed: fx.Node) -> list[fx.Node]:
        return [user for user in changed.users if position.get(user, 0) > position[node]]

    changed: Any = node.args[0] if node.args else node.kwargs['input']
    for user in readers(changed):
        user.replace_input_with(changed, node)
    while is_view(changed):
        changed = changed.args[0]
        if readers(changed):
            raise ConversionError(f'{qualified_names(node)[0]} changes in place a part of {changed.name}, which '
                                  f'{readers(changed)[0].name} reads afterwards: use one that is not in place')
