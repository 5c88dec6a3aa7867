"""The structure of a network's outputs: what the ANN returns, and not the immutable copy that torch.fx keeps."""
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from .operations import is_container, module_of, reads_shape, source_of
from .plan import evaluate

# They give several tensors, or may: as a largest value and where it is.
SEVERAL = {'chunk', 'split', 'split_with_sizes', 'tensor_split', 'hsplit', 'vsplit', 'dsplit', 'unbind', 'max', 'min',
           'median', 'nanmedian', 'mode', 'kthvalue', 'topk', 'sort', 'cummax', 'cummin', 'aminmax', 'var_mean',
           'std_mean'}


def output_nodes(structure: Any) -> list[fx.Node]:
    """The nodes whose tensors a structure of outputs is made of, each once, in order."""
    found: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> fx.Node:
        if is_container(node) or gives_no_tensor(node):
            fx.node.map_arg((node.args, node.kwargs), visit)
        else:
            found.setdefault(node)
        return node

    fx.node.map_arg(structure, visit)
    return list(found)


def assemble(structure: Any, read: Callable[[fx.Node], Any]) -> Any:
    """Put outputs together as the ANN does: tuples, named tuples, lists, dictionaries, data classes.

    Sizes, and several parts of one tensor, are those of its mean over time: what gives them is affine, or a function of
    the mean.

    Args:
        structure: the argument of a graph's output node, ``graph.output_node().args[0]``.
        read: returns the value of a node in it that gives a tensor.

    Returns:
        The structure with values in the place of nodes; it is the caller's to change.
    """
    def inner(value: Any) -> Any:
        return assemble(value, read)

    if isinstance(structure, fx.Node):
        if is_container(structure):
            constructor: Any = structure.target
            return constructor(*map(inner, structure.args), **{k: inner(v) for k, v in structure.kwargs.items()})
        if gives_no_tensor(structure):
            return evaluate(structure, {node: inner(node) for node in structure.all_input_nodes}, module_of(structure))
        return read(structure)
    if isinstance(structure, tuple):
        values = map(inner, structure)
        return type(structure)(*values) if hasattr(structure, '_fields') else tuple(values)
    if isinstance(structure, list):
        return list(map(inner, structure))
    if isinstance(structure, dict):
        return {key: inner(value) for key, value in structure.items()}
    return structure


def gives_no_tensor(node: fx.Node) -> bool:
    """True for sizes, and for what gives several tensors, or may."""
    if node.target is operator.getitem and isinstance(node.args[1], slice) and gives_no_tensor(source_of(node)):
        return True
    name = getattr(node.target, '__name__', None) if node.op == 'call_function' else node.target
    return reads_shape(node) or (node.op in ('call_function', 'call_method') and name in SEVERAL)
