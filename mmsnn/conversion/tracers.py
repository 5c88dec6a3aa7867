"""What records a network's operations: torch.fx's tracer, which does not give up where it cannot trace a module."""
import copy
import functools
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy
from torch import fx, nn

from .arithmetic import recorded_sizes
from .baking import is_plain
from .branches import passing
from .ranks import compared_rank, length

# Their modules compute a deterministic function of their inputs, also where torch.fx cannot look into it: operators
# compiled from C++, such as deformable convolutions.
COMPILED = 'mmcv.ops.', 'torchvision.ops.'


class Proxy(fx.Proxy):
    """Records ``+=`` and the like, and ``x[...] = value``, as what they are.

    torch.fx records an addition that leaves its operand alone, and no assignment.
    """

    requires_grad = is_sparse = is_quantized = is_nested = False

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy('call_function', operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        number = length(self.node, self.tracer.root)  # type: ignore[attr-defined]
        if number is None:
            raise TypeError(f'nobody knows the length of {self.node.name} while it is traced')  # list() goes on then
        return number

    def __bool__(self) -> bool:
        outcome = passing(inspect.currentframe().f_back)  # type: ignore[union-attr]
        return super().__bool__() if outcome is None else outcome

    def _in_place(self, operation, other):
        return self.tracer.create_proxy('call_function', operation, (self, other), {})

    __iadd__ = functools.partialmethod(_in_place, operator.iadd)
    __isub__ = functools.partialmethod(_in_place, operator.isub)
    __imul__ = functools.partialmethod(_in_place, operator.imul)
    __itruediv__ = functools.partialmethod(_in_place, operator.itruediv)


class Tracer(fx.Tracer):
    """Traces into everything it can; what it cannot trace stays one opaque node, to be reported with its reason."""

    def trace(self, root, concrete_args=None) -> fx.Graph:
        with recorded_sizes(root):
            return super().trace(root, concrete_args)

    def proxy(self, node):
        return Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        outcome = compared_rank(obj.node, self.root)
        return super().to_bool(obj) if outcome is None else outcome

    def iter(self, obj: fx.Proxy) -> Iterator:
        number = length(obj.node, self.root)
        if number is None:
            return super().iter(obj)
        return iter([obj[index] for index in range(number)])  # type: ignore[index]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m._forward_hooks or m._forward_pre_hooks or 'forward' in vars(m):
            return False  # they may change what it computes, as a forward of this one module does: to be recorded
        return super().is_leaf_module(m, module_qualified_name) or is_plain(type(m))

    def call_module(self, module, forward, args, kwargs):
        try:
            self.path_of_module(module)
        except NameError:  # made in forward(): nn.Softmax(1)(x), or a part of an nn.Sequential, self.layers[2:](x)
            return forward(*args, **kwargs)
        scope, stack = copy.copy(self.scope), copy.copy(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception as error:  # whatever a user's forward() does with a proxy instead of a tensor
            self.scope, self.module_stack = scope, stack  # torch.fx leaves them where the error happened
            node = self.create_proxy('call_module', self.path_of_module(module), args, kwargs)
            if not type(module).__module__.startswith(COMPILED):
                node.node.meta['untraceable'] = f'{type(error).__name__}: {error}'.splitlines()[0]
            return node

    def create_arg(self, a: Any) -> Any:
        """Keep the type of ordered dictionaries and named tuples, which the ANN may return."""
        if isinstance(a, numpy.generic):
            return a.item()
        if isinstance(a, OrderedDict) and not hasattr(a, '__dataclass_fields__'):
            return self.create_node('call_function', type(a), ({k: self.create_arg(v) for k, v in a.items()},), {})
        if isinstance(a, tuple) and hasattr(a, '_fields'):
            return self.create_node('call_function', type(a), tuple(map(self.create_arg, a)), {})
        return super().create_arg(a)

    def checked(self, value: fx.Proxy) -> fx.Proxy:
        """An input, as the network is to read it."""
        return value

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
            given = list(zip(wanted, map(self.checked, values)))
            return self.root._call_impl(*[value for p, value in given if p.kind is not kinds.KEYWORD_ONLY],
                                        **{p.name: value for p, value in given if p.kind is kinds.KEYWORD_ONLY})

        return forward, proxies
