"""Record what Python and torch compute from sizes alone: ``int(h / 2)``, ``max(h, 7)``, ``torch.zeros(n, c)``.

Where a size is a value to be recorded (torch.fx: a proxy), Python's own functions ask it for a number, and torch's
constructors do not take it. Nor is a proxy a tensor, for which a network may ask. They are replaced while a network is
traced. (A proxy that pretended to be a tensor would be taken for one by torch's compiled functions, and crash them.)
"""
import builtins
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from ..simulation.operations import reads_shape

NOT_THEIRS = {'builtins', 'torch', 'abc', 'typing', 'mmsnn'}  # packages that need no size recorded
CONSTRUCTORS = 'zeros', 'ones', 'full', 'empty', 'rand', 'randn', 'arange', 'eye'
METHODS = 'expand', 'repeat', 'tile', 'view', 'reshape', 'new_zeros', 'new_ones', 'new_full', 'new_empty'


@contextmanager
def recorded_sizes(network: nn.Module) -> Iterator[None]:
    """Let functions of sizes be recorded, in torch and in the packages that a network's modules come from."""
    classes = {cls for module in network.modules() for cls in type(module).__mro__}
    packages = {'__main__', *(cls.__module__.partition('.')[0] for cls in classes)} - NOT_THEIRS
    spaces = [vars(module) for name, module in list(sys.modules.items()) if name.partition('.')[0] in packages]
    # Networks that torch.fx has made have their own.
    forwards = [vars(cls)['forward'] for cls in classes if 'forward' in vars(cls)]
    spaces += [forward.__globals__ for forward in forwards if '<eval_with_key>' in str(
        getattr(forward, '__code__', ''))]
    with ExitStack() as stack:
        for space in spaces:
            for name, function in _PYTHON.items():
                if space.get(name) is getattr(builtins, name):
                    stack.callback(space.__setitem__, name, space[name])
                elif name in space:
                    continue
                else:
                    stack.callback(space.pop, name)
                space[name] = function
        for name in CONSTRUCTORS:
            original = getattr(torch, name)
            setattr(torch, name, _recording(original))
            stack.callback(setattr, torch, name, original)
        for name in METHODS:
            setattr(Tensor, name, _recording_method(name))  # torch's own stands in the class that it derives from
            stack.callback(delattr, Tensor, name)
        stack.callback(setattr, torch, 'is_tensor', torch.is_tensor)
        torch.is_tensor = lambda value: is_instance(value, Tensor)  # type: ignore[assignment]
        yield


def is_instance(value: Any, kinds: Any) -> bool:
    """``isinstance``, for which values that are recorded are tensors unless they are made of sizes."""
    if not isinstance(value, fx.Proxy) or reads_shape(value.node):
        return isinstance(value, kinds)
    return isinstance(value, kinds) or kinds is Tensor or (
        isinstance(kinds, tuple) and any(is_instance(value, kind) for kind in kinds))


def proxy_in(value: Any) -> fx.Proxy | None:
    """A recorded value among arguments, if there is one."""
    if isinstance(value, fx.Proxy):
        return value
    children = value.values() if type(value) is dict else value if type(value) in (tuple, list) else ()
    return next((found for child in children if (found := proxy_in(child)) is not None), None)


def _recording(function: Callable) -> Callable:
    @functools.wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        proxy = proxy_in((args, kwargs))
        if kwargs.get('dtype') is _Integer:
            kwargs['dtype'] = torch.int64
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy('call_function', function, args, kwargs)

    return recorded


def _recording_method(name: str) -> Callable:
    original = getattr(Tensor, name)

    @functools.wraps(original)
    def recorded(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        proxy = proxy_in((args, kwargs))
        if proxy is None:
            return original(self, *args, **kwargs)
        return proxy.tracer.create_proxy('call_method', name, (self, *args), kwargs)

    return recorded


def _length(value: Any) -> Any:
    try:
        return builtins.len(value)
    except (RuntimeError, TypeError):
        if not isinstance(value, fx.Proxy):
            raise
        return value.tracer.create_proxy('call_function', builtins.len, (value,), {})


class _IntegerType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, builtins.int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, builtins.int)

    def __call__(cls, *args: Any) -> Any:
        return _recording(builtins.int)(*args)


class _Integer(int, metaclass=_IntegerType):
    """``int``, which remains a type where a network asks what something is, and for NumPy."""

    dtype = numpy.dtype(int)


_PYTHON: dict[str, Any] = {name: _recording(getattr(builtins, name)) for name in ('max', 'min', 'round')}
_PYTHON |= {'int': _Integer, 'len': _length, 'isinstance': is_instance}
