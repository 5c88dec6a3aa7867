"""Tracing networks that decide by sizes: an example's sizes are known while its operations are recorded."""
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ..simulation.operations import of_size
from .tracers import Proxy, Tracer

NUMBERS = 2, 3  # of images that the example is tried with: sizes that differ then depend on the number of images


class SizedProxy(Proxy):
    """A value whose sizes are numbers, except those that depend on the number of images."""

    tracer: 'SizedTracer'

    def __getattr__(self, k: str) -> Any:
        if k in ('shape', 'ndim', 'device', 'is_nested') and self.tracer.is_tensor(self):
            return self.tracer.sizes(self) if k == 'shape' else getattr(self.tracer.values(self)[0], k)
        return super().__getattr__(k)

    def __len__(self) -> int:
        value = self.tracer.values(self)[0]
        if self.tracer.is_tensor(self):
            return self.tracer.sizes(self)[0].__index__()
        return len(value)

    def __index__(self) -> int:
        return self._number(int)

    __int__ = __index__

    def __float__(self) -> float:
        return self._number(float)

    def _number(self, kind: type) -> Any:
        values = self.tracer.values(self)
        if not all(isinstance(value, (int, float)) for value in values) or values[0] != values[1]:
            raise TypeError(f'{self.node.name} is no number that all inputs of this size have in common')
        return kind(values[0])


class SizedTracer(Tracer):
    """Computes shapes while it records, without computing values (fake tensors).

    Args:
        example: a tensor (N, ...), or its shape, a tuple of numbers; or several tensors in a tuple in the order of the
            arguments, or in a dictionary by name.
    """

    def __init__(self, example: Any) -> None:
        super().__init__()
        from torch._subclasses import FakeTensorMode

        if not isinstance(example, (Tensor, dict)) and all(isinstance(size, int) for size in example):
            example = torch.empty(tuple(example), device='meta')
        self.example = example if isinstance(example, (tuple, list, dict)) else (example,)
        self.fakes = [FakeTensorMode(allow_non_fake_inputs=True) for _ in NUMBERS]
        self.device = torch.device('cpu')
        self.known: dict[fx.Node, tuple] = {}
        self.placeholders = 0
        self.evaluating = False

    def trace(self, root, concrete_args=None) -> fx.Graph:
        self.device = next((value.device for value in root.parameters()), self.device)
        return super().trace(root, concrete_args)

    def proxy(self, node: fx.Node) -> SizedProxy:
        return SizedProxy(node, self)

    def checked(self, value: fx.Proxy) -> fx.Proxy:
        if not self.values(value):
            raise TypeError(f'the example has no input {value.node.name}')
        size = tuple(self.values(value)[0].shape[1:])
        return self.create_proxy('call_function', of_size, (value, size), {})

    def values(self, proxy: fx.Proxy) -> tuple:
        """What a value is with each of the numbers of images; empty where that is not known."""
        return self.known.get(proxy.node, ())

    def is_tensor(self, proxy: fx.Proxy) -> bool:
        values = self.values(proxy)
        return bool(values) and all(isinstance(value, Tensor) for value in values)

    def sizes(self, proxy: fx.Proxy) -> tuple:
        """The shape of a tensor: numbers, and values to be recorded where they depend on the number of images."""
        first, second = (value.shape for value in self.values(proxy))
        return tuple(a if a == b else super(Tracer, self).create_proxy('call_method', 'size', (proxy, axis), {})
                     for axis, (a, b) in enumerate(zip(first, second, strict=True)))

    def create_proxy(self, kind, target, args, kwargs, *others, **options):  # type: ignore[override]
        if kind == 'call_method' and target in ('size', 'dim') and self.is_tensor(args[0]):
            sizes = self.sizes(args[0])
            axis = (*args[1:], *kwargs.values())
            return len(sizes) if target == 'dim' else sizes[axis[0]] if axis else sizes
        return super().create_proxy(kind, target, args, kwargs, *others, **options)

    def create_node(self, kind, target, args, kwargs, *others, **options) -> fx.Node:  # type: ignore[override]
        node = super().create_node(kind, target, args, kwargs, *others, **options)
        try:
            self.evaluating = True
            with torch.no_grad():
                self.known[node] = tuple(self._evaluate(node, index) for index in range(len(NUMBERS)))
        except Exception:  # values decide here, or an operation that has no shapes without them: not known
            pass
        finally:
            self.evaluating = False
        return node

    def _evaluate(self, node: fx.Node, index: int) -> Any:
        if node.op == 'placeholder':
            given = self.example[node.target] if isinstance(self.example, dict) else self.example[self.placeholders]
            self.placeholders += index == len(NUMBERS) - 1
            device = self.device if given.is_meta else given.device
            return self.fakes[index].from_tensor(torch.empty(
                (NUMBERS[index], *given.shape[1:]), dtype=given.dtype, device=device))
        if node.op == 'get_attr':
            value: Any = self.root
            for name in str(node.target).split('.'):
                value = getattr(value, name)
            return value
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda arg: self.known[arg][index])
        with self.fakes[index]:
            if node.op == 'call_module':
                return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
            if node.op == 'call_method':
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    # While shapes are computed, modules are what they are.

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, module, forward, args, kwargs):
        return forward(*args, **kwargs) if self.evaluating else super().call_module(module, forward, args, kwargs)

    # Where Python asks.

    def to_bool(self, obj: fx.Proxy) -> bool:
        values = self.values(obj)
        if values and not any(isinstance(value, Tensor) for value in values) and len(set(map(bool, values))) == 1:
            return bool(values[0])
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator:
        if self.values(obj):
            return iter([obj[index] for index in range(len(obj))])  # type: ignore[arg-type, index]
        return super().iter(obj)
