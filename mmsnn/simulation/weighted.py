"""Which operations connect values by weights, and which value they weight."""
import operator
from typing import TypeAlias, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn

from .operations import module_of, reads_shape

Weighted: TypeAlias = nn.Linear | nn.modules.conv._ConvNd  # layers whose outputs are connected to their inputs
# Products of values and weights that conversion has not turned into layers, such as weights that depend on the image.
PRODUCTS = {operator.matmul, torch.matmul, 'matmul', torch.mm, 'mm', torch.bmm, 'bmm', torch.addmm, 'addmm',
            torch.baddbmm, 'baddbmm', torch.addbmm, 'addbmm', torch.einsum, torch.tensordot, F.bilinear, F.linear,
            F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def has_weights(module: nn.Module | None) -> TypeGuard[Weighted]:
    """True for convolutions and linear layers, whose outputs are connected to their inputs."""
    return isinstance(module, Weighted)


def weighted_input(node: fx.Node, varies: set[fx.Node]) -> fx.Node | None:
    """The value that a convolution, linear layer or matrix product weights, or None for any other node.

    Of the operands of a product it is the one that varies in time; where none does, the first.
    """
    if has_weights(module_of(node)):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.target not in PRODUCTS:
        return None
    operands = [operand for operand in node.all_input_nodes if not reads_shape(operand)]
    return next((operand for operand in operands if operand in varies), next(iter(operands), None))
