"""Which operations of a traced network commute with the mean over time.

A spiking network computes ``mean_t f(s(t))`` where the ANN computes ``f(x)``. The two agree when f is affine, so
every such operation is simply applied at each time step. ReLU (see ``rectifiers``) becomes a neuron, and everything
else is "nonlinear".
"""
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .calls import arguments

Arguments = dict[str, Any]


class Affine(NamedTuple):
    """When a function is affine.

    Attributes:
        together: names of arguments that may vary in time together, all others being constant; alternatives are
            separated by ``|``. ``'input | other'`` is a product.
        unless: says what in its arguments makes a call not affine, or returns None.
    """

    together: str = 'input'
    unless: Callable[[Arguments, set[fx.Node]], str | None] = lambda _arguments, _varies: None

    def allows(self, varying: set[str]) -> bool:
        return any(varying <= set(names.split()) for names in self.together.split('|'))


def _rounds(given: Arguments, _varies: set[fx.Node]) -> str | None:
    return f'rounding_mode={given["rounding_mode"]!r}' if given.get('rounding_mode') is not None else None


def _trains(given: Arguments, _varies: set[fx.Node]) -> str | None:
    return 'training=True' if given.get('training', given.get('train')) is not False and given.get('p') != 0 else None


def _uses_batch(given: Arguments, _varies: set[fx.Node]) -> str | None:
    return "training=True, which normalises by the batch" if given.get('training') is not False else None


def _uses_image(given: Arguments, _varies: set[fx.Node]) -> str | None:
    return 'use_input_stats=True' if given.get('use_input_stats') is not False else None


def _several_vary(given: Arguments, varies: set[fx.Node]) -> str | None:
    return 'several varying operands' if sum(node in varies for node in _nodes_in(given['args'])) > 1 else None


def assigned(input: Tensor, index: Any, value: Any) -> Tensor:
    """What ``input[index] = value`` makes of a tensor; the tensor itself stays as it was."""
    if isinstance(input, fx.Proxy):  # unpickling a graph traces it anew
        return input.tracer.create_proxy('call_function', assigned, (input, index, value), {})
    result = input.clone()
    result[index] = value
    return result


def of_size(input: Tensor, size: tuple[int, ...]) -> Tensor:
    """Hand on what has a size, the number of images aside.

    Raises:
        ValueError: it has another: the network was traced with decisions and numbers that belong to this one.
    """
    if isinstance(input, fx.Proxy):  # as above
        return input.tracer.create_proxy('call_function', of_size, (input, size), {})
    if tuple(input.shape[1:]) != tuple(size):
        raise ValueError(f'this network was converted for inputs of size {tuple(size)}, this one has '
                         f'{tuple(input.shape[1:])}: resize it, or convert again with example=...')
    return input


_FIRST, _PRODUCT, _LAYER = Affine(), Affine('input | other'), Affine('input bias | weight bias')
# By the name that they have in torch or as methods of tensors.
AFFINE_OPERATIONS: dict[str, Affine] = dict.fromkeys((
    'neg', 'negative', 'positive', 'flatten', 'mean', 'sum', 'cumsum', 'diff', 'reshape', 'view', 'view_as',
    'reshape_as', 'permute', 'transpose', 'swapaxes', 'swapdims', 'movedim', 'moveaxis', 't', 'squeeze', 'unsqueeze',
    'chunk', 'split', 'split_with_sizes', 'tensor_split', 'unbind', 'narrow', 'select', 'index_select', 'gather',
    'contiguous', 'clone', 'detach', 'to', 'float', 'double', 'type_as', 'cpu', 'cuda', 'expand', 'expand_as',
    'broadcast_to', 'repeat', 'repeat_interleave', 'tile', 'roll', 'flip', 'fliplr', 'flipud', 'rot90', 'unflatten',
    'unfold', 'tril', 'triu', 'diagonal', 'zeros_like', 'ones_like', 'pixel_shuffle', 'pixel_unshuffle',
    'channel_shuffle'), _FIRST) | dict.fromkeys((
        'mul', 'multiply'), _PRODUCT) | dict.fromkeys((
            'div', 'divide'), Affine('input', _rounds)) | dict.fromkeys((
                'add', 'sub', 'subtract', 'rsub'), Affine('input other')) | {
    'true_divide': _FIRST, 'matmul': _PRODUCT, 'mm': Affine('input | mat2'), 'bmm': Affine('input | mat2'),
    'mv': Affine('input | vec'), 'dot': Affine('input | tensor'), 'inner': _PRODUCT, 'outer': Affine('input | vec2'),
    'addmm': Affine('input mat1 | input mat2'), 'addmv': Affine('input mat | input vec'),
    'addr': Affine('input vec1 | input vec2'), 'baddbmm': Affine('input batch1 | input batch2'),
    'addbmm': Affine('input batch1 | input batch2'), 'addcmul': Affine('input tensor1 | input tensor2'),
    'addcdiv': Affine('input tensor1'), 'lerp': Affine('input end | weight'), 'masked_fill': Affine('input value')}
AFFINE_FUNCTIONS: dict[object, Affine] = {
    getattr(torch, name): rule for name, rule in AFFINE_OPERATIONS.items()
    if callable(getattr(torch, name, None))} | dict.fromkeys((
        torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack,
    ), Affine('tensors')) | dict.fromkeys((
        F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
    ), _LAYER) | dict.fromkeys((
        F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
        F.interpolate, F.pixel_shuffle, F.pixel_unshuffle, F.unfold, F.fold, F.grid_sample), _FIRST) | dict.fromkeys((
            F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), Affine('input', _trains)) | {
    F.pad: Affine('input value'), F.bilinear: Affine('input1 bias | input2 bias | weight bias'),
    F.batch_norm: Affine('input bias | weight bias', _uses_batch), F.instance_norm: Affine('input', _uses_image),
    torch.split: Affine('tensor'), torch.tensordot: Affine('a | b'), torch.einsum: Affine('args', _several_vary),
    torch.where: Affine('input other'), assigned: Affine('input value'),
    of_size: _FIRST,
    operator.add: Affine('a b'), operator.sub: Affine('a b'), operator.neg: Affine('a'), operator.pos: Affine('a'),
    operator.getitem: Affine('a'), operator.mul: Affine('a | b'), operator.matmul: Affine('a | b'),
    operator.truediv: Affine('a')}
AFFINE_METHODS = {name: rule for name, rule in AFFINE_OPERATIONS.items() if hasattr(Tensor, name)}
# Attributes that are the tensor itself, or its transpose.
AFFINE_ATTRIBUTES = ('T', 'mT', 'data')

NORMS = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DROPOUTS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# In evaluation mode: dropout is the identity, batch normalisation uses its running statistics if it has any.
AFFINE_MODULES = (
    nn.Linear, *CONVOLUTIONS, *NORMS, *DROPOUTS, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold,
    nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d, nn.Upsample)
# Functions, known by name where they are not torch's own, that are the identity when not training.
DROPOUT_NAMES = ('dropout', 'dropout1d', 'dropout2d', 'dropout3d', 'alpha_dropout', 'feature_dropout',
                 'feature_alpha_dropout', 'stochastic_depth', 'drop_path', 'drop_block2d', 'drop_block3d')

MAX_POOL_MODULES = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
                    nn.AdaptiveMaxPool3d)
MAX_POOL_FUNCTIONS = (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
                      F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)

# They read shapes, not values.
SHAPE_METHODS = {'size', 'dim', 'numel', 'ndimension', 'stride', 'get_device', 'is_floating_point', 'new_zeros',
                 'new_ones', 'new_empty'}
SHAPE_FUNCTIONS = {torch.zeros_like, torch.ones_like, torch.empty_like}
SHAPE_ATTRIBUTES = ('shape', 'ndim', 'device', 'dtype', 'is_cuda', 'layout')

OUT_OF_PLACE: dict[object, Callable] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv} | {
        getattr(space, name): getattr(space, name[:-1]) for space in (torch, F) for name in dir(space)
        if name.endswith('_') and not name.endswith('__') and callable(getattr(space, name[:-1], None))}
VIEWS = {operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
         torch.chunk, torch.split, torch.narrow, torch.unbind, torch.movedim, torch.select, torch.swapaxes,
         torch.diagonal, 'flatten', 'reshape', 'view', 'permute', 'transpose', 't', 'squeeze', 'unsqueeze', 'chunk',
         'split', 'narrow', 'contiguous', 'detach', 'expand', 'expand_as', 'unflatten', 'unbind', 'movedim', 'select',
         'swapaxes', 'diagonal', 'view_as', 'unfold', 'to', 'float', 'type_as', getattr}
# Checks of shapes; they compute nothing.
ASSERTIONS = (torch._assert,)


def module_of(node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node calls, else None."""
    if node.op != 'call_module':
        return None
    assert node.graph.owning_module is not None
    return node.graph.owning_module.get_submodule(str(node.target))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of one, as ``set_submodule`` of torch 2.5."""
    parent, _, own = name.rpartition('.')
    setattr(model.get_submodule(parent), own, module)


def source_of(node: fx.Node) -> fx.Node:
    """Return the node that an operation on one value works on."""
    return cast(fx.Node, node.args[0])


def computes_as(module: nn.Module | None, kinds: tuple[type[nn.Module], ...]) -> bool:
    """True for instances of some classes that compute what these do: a subclass may have a ``forward`` of its own."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def changes_argument(node: fx.Node, in_place: set[str]) -> bool:
    """True for operations in place on a tensor; ``in_place`` names the modules that were made to work in place."""
    if node.op == 'call_module':
        return node.target in in_place
    if node.op == 'call_method':
        name = str(node.target)
        return name.endswith('_') and not name.endswith('__')
    if node.op != 'call_function' or reads_shape(node):
        return False
    return node.target in OUT_OF_PLACE or bool(arguments(node).get('inplace'))


def is_view(node: fx.Node) -> bool:
    """True where a node's value shares, or may share, its memory with the node's argument."""
    return node.target in VIEWS or isinstance(module_of(node), (nn.Flatten, nn.Unflatten))


def is_dropout(node: fx.Node) -> bool:
    """True for what is the identity in evaluation mode."""
    if node.op == 'call_module':
        return computes_as(module_of(node), DROPOUTS)
    if node.op != 'call_function' or getattr(node.target, '__name__', None) not in DROPOUT_NAMES:
        return False
    return _trains(arguments(node), set()) is None


def is_max_pool(node: fx.Node) -> bool:
    if node.op == 'call_module':
        module = module_of(node)
        return computes_as(module, MAX_POOL_MODULES) and not cast(Any, module).return_indices
    return (node.op == 'call_function' and node.target in MAX_POOL_FUNCTIONS
            and not arguments(node).get('return_indices'))


def reads_shape(node: fx.Node) -> bool:
    """True for nodes whose value is made of sizes: ``x.size(0)``, ``x.shape``, and arithmetic on them."""
    if node.op == 'call_method' and node.target in SHAPE_METHODS:
        return True
    if node.op != 'call_function':
        return False
    if node.target is getattr:
        return node.args[1] in SHAPE_ATTRIBUTES
    if node.target in SHAPE_FUNCTIONS:
        return True
    return bool(node.all_input_nodes) and all(map(reads_shape, node.all_input_nodes))


def is_container(node: fx.Node) -> bool:
    """True for calls that only put their arguments together: named tuples, ordered dictionaries, data classes."""
    return (node.op == 'call_function' and isinstance(node.target, type)
            and (issubclass(node.target, (tuple, dict)) or hasattr(node.target, '__dataclass_fields__')))


def is_affine(node: fx.Node, varies: set[fx.Node]) -> bool:
    """True where the node is an affine function of those of its inputs that vary in time (the set ``varies``)."""
    return objection(node, varies) is None


def objection(node: fx.Node, varies: set[fx.Node]) -> str | None:
    """Say what keeps a node from being affine in those of its inputs that vary in time: in short, what it is.

    Args:
        node: of a traced graph, calls normalised (see :func:`mmsnn.simulation.calls.normalise`).
        varies: the nodes that vary in time. Sizes do not, whatever they are read from.

    Returns:
        None where it is affine.
    """
    if node.op in ('placeholder', 'get_attr', 'output') or reads_shape(node) or is_container(node):
        return None
    varies = {value for value in varies.intersection(node.all_input_nodes) if not reads_shape(value)}
    if node.op == 'call_module':
        return _module_objection(node, varies)
    rule = (AFFINE_METHODS.get(str(node.target).removesuffix('_')) if node.op == 'call_method' else
            AFFINE_FUNCTIONS.get(OUT_OF_PLACE.get(node.target, node.target)))
    name = getattr(node.target, '__name__', str(node.target))
    if node.target is getattr:
        return None if node.args[1] in AFFINE_ATTRIBUTES else f'.{node.args[1]}'
    if rule is None:
        return f'{name}()'
    given = arguments(node)
    reason = rule.unless(given, varies)
    reason = reason or next((f'{key}={value}' for key, value in given.items() if isinstance(value, torch.dtype)
                             and not value.is_floating_point), None)
    varying = {key for key, value in given.items() if varies.intersection(_nodes_in(value))}
    if reason is None and rule.allows(varying):
        return None
    return f'{name}({reason or ""})' + (' of several values that vary' if not reason and len(varying) > 1 else '')


def _module_objection(node: fx.Node, varies: set[fx.Node]) -> str | None:
    module = module_of(node)
    name = type(module).__name__
    if 'untraceable' in node.meta:
        return f'{name}, cannot be traced ({node.meta["untraceable"]})'
    if not computes_as(module, AFFINE_MODULES) or not varies <= set(node.args[:1]):
        return name
    # Without them the statistics are those of the batch or, for instance normalisation, of the image.
    if isinstance(module, NORMS) and cast(Any, module).running_mean is None:
        return f'{name}(track_running_stats=False)'
    return None


def _nodes_in(value: Any) -> Iterator[fx.Node]:
    """The nodes within an argument, as often as they stand there."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return iter(found)
