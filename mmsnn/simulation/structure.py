"""The structure of a network's outputs: what the ANN returns, and not the immutable copy that torch.fx keeps."""
from collections.abc import Callable
from typing import Any

from torch import fx

from .operations import is_container


def output_nodes(structure: Any) -> list[fx.Node]:
    """The nodes whose values stand in a structure of outputs, each once, in order."""
    found: dict[fx.Node, None] = {}
    assemble(structure, lambda node: found.setdefault(node))
    return list(found)


def assemble(structure: Any, read: Callable[[fx.Node], Any]) -> Any:
    """Put outputs together as the ANN does: tuples, named tuples, lists, dictionaries, data classes.

    Args:
        structure: the argument of a graph's output node, ``graph.output_node().args[0]``.
        read: returns the value of a node in it.

    Returns:
        The structure with values in the place of nodes; it is the caller's to change.
    """
    def inner(value: Any) -> Any:
        return assemble(value, read)

    if isinstance(structure, fx.Node):
        if is_container(structure):
            constructor: Any = structure.target
            return constructor(*map(inner, structure.args), **{k: inner(v) for k, v in structure.kwargs.items()})
        return read(structure)
    if isinstance(structure, tuple):
        values = map(inner, structure)
        return type(structure)(*values) if hasattr(structure, '_fields') else tuple(values)
    if isinstance(structure, list):
        return list(map(inner, structure))
    if isinstance(structure, dict):
        return {key: inner(value) for key, value in structure.items()}
    return structure
