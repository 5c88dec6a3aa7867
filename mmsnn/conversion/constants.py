"""Compute once, at conversion, whatever in a traced network depends on its parameters alone."""
from typing import Any

import torch
from torch import Tensor, fx

from ..simulation.plan import evaluate


@torch.no_grad()
def fold_constants(network: fx.GraphModule) -> None:
    """Replace what is computed from parameters alone, such as standardised weights, by its value.

    Equal computations, of a layer that is called at several places, give one and the same constant.
    """
    graph = network.graph
    values: dict[fx.Node, Any] = {}
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != 'get_attr' and not (node.op.startswith('call_') and node.all_input_nodes
                                          and values.keys() >= set(node.all_input_nodes)):
            continue
        key = node.op, node.target, node.args, tuple(node.kwargs.items())
        try:
            same = first.setdefault(key, node)
        except TypeError:  # an argument that cannot be hashed, such as a slice
            same = node
        if same is node:
            module = network.get_submodule(str(node.target)) if node.op == 'call_module' else None
            values[node] = evaluate(node, values, module)
        else:
            node.replace_all_uses_with(same)
    for node in list(graph.nodes):
        if node in values and node.op != 'get_attr' and any(user not in values for user in node.users):
            _replace(network, node, values[node])
    graph.eliminate_dead_code()


def _replace(network: fx.GraphModule, node: fx.Node, value: Any) -> None:
    if isinstance(value, Tensor):
        with network.graph.inserting_after(node):
            constant = constant_node(network, f'{node.name}_constant', value)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    elif isinstance(value, (int, float, bool, str, torch.Size, torch.dtype, torch.device)):
        plain = tuple(value) if isinstance(value, torch.Size) else value
        for user in list(node.users):
            def substituted(used: fx.Node, own: fx.Node = node, plain: Any = plain) -> Any:
                return plain if used is own else used
            user.args = fx.node.map_arg(user.args, substituted)
            user.kwargs = fx.node.map_arg(user.kwargs, substituted)


def constant_node(network: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Add a buffer to a network, and a node that reads it to its graph."""
    while hasattr(network, name):
        name += '_'
    network.register_buffer(name, value.detach().clone())
    return network.graph.get_attr(name)


def drop_unused(network: fx.GraphModule) -> None:
    """Forget the parameters, buffers and modules that no node reads any more."""
    network.delete_all_unused_submodules()
    read = {str(node.target) for node in network.graph.nodes if node.op == 'get_attr'}
    called = {str(node.target) for node in network.graph.nodes if node.op == 'call_module'}
    for path, module in list(network.named_modules()):
        if any(path == name or path.startswith(f'{name}.') for name in called):
            continue
        for stored in (module._parameters, module._buffers):
            for name in list(stored):
                if f'{path}.{name}'.lstrip('.') not in read:
                    del stored[name]
