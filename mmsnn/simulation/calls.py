"""The arguments of a traced call by their names, however the network has passed them."""
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
# What torch accepts beside its own names, for the sake of NumPy.
NUMPY_NAMES = dict(axis='dim', keepdims='keepdim', x='input', a='input', x1='input', x2='other')


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults included; what is called on is ``input`` in torch's own operations.

    Where no signature is known, or none fits (``x.view(2, 3)``), positional arguments after the first are called by
    their numbers.
    """
    bound = _bound(node)
    if bound is None:
        names = ['input', *map(str, range(1, len(node.args)))]
        return dict(zip(names, node.args)) | node.kwargs
    bound.apply_defaults()
    return dict(bound.arguments)


def normalise(node: fx.Node) -> None:
    """Give a call its leading arguments by position, whatever was passed by name: all others may read ``args[0]``."""
    if not node.kwargs or node.op not in ('call_function', 'call_method', 'call_module'):
        return
    bound = _bound(node)
    if bound is not None:
        given = dict(bound.arguments)
        args, kinds = [], bound.signature.parameters
        for name in kinds:
            if name not in given or kinds[name].kind is not POSITIONAL:
                break
            args.append(given.pop(name))
        if not any(kinds[name].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
                   for name in bound.arguments):
            node.args, node.kwargs = tuple(args), given


def _bound(node: fx.Node) -> inspect.BoundArguments | None:
    kwargs = {NUMPY_NAMES.get(name, name): value for name, value in node.kwargs.items()}
    for given in (node.kwargs, kwargs):
        for signature in signatures(node):
            try:
                return signature.bind(*node.args, **given)
            except TypeError:
                continue
    return None


def signatures(node: fx.Node) -> list[inspect.Signature]:
    """The signatures that a call may have: one, or one for each overload of an operation of torch's."""
    if node.op == 'call_module':
        assert node.graph.owning_module is not None
        return _of_python(node.graph.owning_module.get_submodule(str(node.target)).forward)
    if node.op == 'call_method':
        return of_operation(str(node.target))
    if node.op == 'call_function' and callable(node.target):
        # F.max_pool2d and its like choose between two functions, the second without indices.
        chosen = torch._jit_internal.boolean_dispatched.get(node.target)
        function: Callable = chosen['if_false'] if chosen else node.target
        return _of_python(function) or of_operation(getattr(function, '__name__', ''))
    return []


def _of_python(function: Callable) -> list[inspect.Signature]:
    try:
        return [inspect.signature(function)]
    except (ValueError, TypeError):  # compiled functions
        return []


@functools.cache
def of_operation(name: str) -> list[inspect.Signature]:
    """The signatures of a compiled operation: those of its overloads on tensors, the least demanding first."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() and not name.startswith('__') else None
    found = []
    for overload in packet.overloads() if packet is not None else ():
        schema = getattr(packet, overload)._schema
        if not schema.arguments or any(argument.is_out for argument in schema.arguments) \
                or 'Tensor' not in str(schema.arguments[0].type):
            continue
        found.append(inspect.Signature([inspect.Parameter(
            'input' if argument.name == 'self' else argument.name,
            inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else POSITIONAL,
            default=argument.default_value if argument.has_default_value() else inspect.Parameter.empty)
            for argument in schema.arguments]))
    return sorted(found, key=lambda signature: len(signature.parameters))


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Change an argument that a call was given, by position or by name."""
    bound = _bound(node)
    names = list(bound.signature.parameters) if bound is not None else []
    if name in node.kwargs:
        node.update_kwarg(name, value)
    elif name in names and names.index(name) < len(node.args):
        node.update_arg(names.index(name), value)
