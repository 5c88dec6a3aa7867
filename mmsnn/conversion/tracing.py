"""Trace a network with torch.fx into a graph without dropout, in-place operations and checkpointing."""
import copy
import functools
import inspect
import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..simulation.calls import normalise, set_argument
from ..simulation.operations import ASSERTIONS, OUT_OF_PLACE, changes_argument, is_dropout, is_view, source_of
from .baking import bake_weights, is_plain
from .folding import qualified_names
from .ranks import compared_rank

# What cannot be traced into, by the names of classes, and what to pass in its place.
WRAPPERS = dict.fromkeys(('DataParallel', 'DistributedDataParallel', 'FullyShardedDataParallel'),
                         'pass .module, the network in it') | {
    'OptimizedModule': 'pass ._orig_mod, the network that torch.compile was given',
    'ScriptModule': 'torch.jit has scripted or traced it; pass the network that it was made from'}


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

    def to_bool(self, obj: fx.Proxy) -> bool:
        outcome = compared_rank(obj.node, self.root)
        return super().to_bool(obj) if outcome is None else outcome

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or is_plain(type(m))

    def call_module(self, module, forward, args, kwargs):
        scope, stack = copy.copy(self.scope), copy.copy(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception as error:  # whatever a user's forward() does with a proxy instead of a tensor
            self.scope, self.module_stack = scope, stack  # torch.fx leaves them where the error happened
            node = self.create_proxy('call_module', self.path_of_module(module), args, kwargs)
            node.node.meta['untraceable'] = f'{type(error).__name__}: {error}'.splitlines()[0]
            return node

    def create_arg(self, a: Any) -> Any:
        """Keep the type of ordered dictionaries and named tuples, which the ANN may return."""
        if isinstance(a, OrderedDict) and not hasattr(a, '__dataclass_fields__'):
            return self.create_node('call_function', type(a), ({k: self.create_arg(v) for k, v in a.items()},), {})
        if isinstance(a, tuple) and hasattr(a, '_fields'):
            return self.create_node('call_function', type(a), tuple(map(self.create_arg, a)), {})
        return super().create_arg(a)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        """One placeholder for each argument without a default; those with one are not passed on, and so keep it.

        ``*args`` is one input where there is no other, and ``**kwargs`` is empty.
        """
        kinds = inspect.Parameter
        parameters = list(inspect.signature(self.root.forward).parameters.values())
        wanted = [p for p in parameters if p.default is p.empty and p.kind is not kinds.VAR_KEYWORD]
        wanted = [p for p in wanted if p.kind is not kinds.VAR_POSITIONAL] or wanted or parameters[:1]
        proxies = [self.create_proxy('placeholder', p.name, (), {}) for p in wanted]

        def forward(*values: Any) -> Any:
            given = list(zip(wanted, values))
            return self.root.forward(*[value for p, value in given if p.kind is not kinds.KEYWORD_ONLY],
                                     **{p.name: value for p, value in given if p.kind is kinds.KEYWORD_ONLY})

        return forward, proxies


def trace(ann: nn.Module) -> fx.GraphModule:
    """Trace a copy of ``ann`` in evaluation mode, without dropout, in-place operations and checkpointing.

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
    tracer = _Tracer()
    try:
        graph = tracer.trace(ann)
    except Exception as error:
        raise ConversionError(f'{type(ann).__name__} cannot be traced by torch.fx ({type(error).__name__}: {error}). '
                              'Its forward() must not branch on tensor values; see the documentation of torch.fx.'
                              ) from error
    network = fx.GraphModule(tracer.root, graph, type(ann).__name__)
    for node in list(graph.nodes):
        if node.target in ASSERTIONS:
            graph.erase_node(node)
        else:
            normalise(node)
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if changes_argument(node, in_place):
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


def refuse(ann: nn.Module) -> None:
    """Refuse networks that are wrapped, compiled, or of half precision.

    Raises:
        ConversionError: saying what to pass instead.
    """
    for name, module in ann.named_modules():
        found = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in WRAPPERS), None)
        if found and not (name and found == 'ScriptModule'):  # which may be left analog where it is a part
            raise ConversionError(f"{name or 'the network'} is a {type(module).__name__}, which cannot be traced by "
                                  f'torch.fx: {WRAPPERS[found]}')
    for path, value in itertools.chain(ann.named_parameters(), ann.named_buffers()):
        if value.dtype in (torch.float16, torch.bfloat16):
            raise ConversionError(f'{path} is in {value.dtype}, too coarse for sums of many steps: convert a float32 '
                                  "copy, model.float(); dtype='bfloat16' then simulates in bfloat16")


def _read_changed(node: fx.Node, position: dict[fx.Node, int]) -> None:
    """Let everything behind a node that changes its argument read the node instead of the argument.

    Raises:
        ConversionError: the argument is a view, and what it is a view of is read later.
    """
    def readers(changed: fx.Node) -> list[fx.Node]:
        return [user for user in changed.users if position.get(user, 0) > position[node]]

    changed = source_of(node)
    for user in readers(changed):
        user.replace_input_with(changed, node)
    while is_view(changed):
        changed = source_of(changed)
        if readers(changed):
            raise ConversionError(f'{qualified_names(node)[0]} changes in place a part of {changed.name}, which '
                                  f'{readers(changed)[0].name} reads afterwards: use one that is not in place')
