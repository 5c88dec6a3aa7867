"""Every operation that is listed as affine is affine, in each set of arguments that its rule lets vary together."""
import itertools
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmsnn
from mmsnn.conversion.spelling import spell_rectifiers
from mmsnn.conversion.tracing import trace
from mmsnn.simulation import operations
from mmsnn.simulation.operations import module_of, objection
from mmsnn.simulation.rectifiers import relu_ceiling, varying_nodes

from networks import leaves

torch.manual_seed(0)


def T(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def image():
    return T(2, 4, 6, 6)


FIRST = {name: {} for name in (
    'neg', 'negative', 'positive', 'flatten', 'mean', 'sum', 'contiguous', 'clone', 'detach', 'double', 'float', 'cpu',
    'fliplr', 'flipud', 'tril', 'triu', 'zeros_like', 'ones_like', 'diff', 'squeeze')}
# Arguments by name, tensors of floating-point numbers being those that may vary; the first is what is called on.
EXAMPLES = {name: dict(input=image(), **rest) for name, rest in {
    **FIRST, 'cumsum': dict(dim=1), 'reshape': dict(shape=(2, -1)), 'view': dict(size=(2, 4, 36)),
    'view_as': dict(other=torch.zeros(2, 4, 36)), 'reshape_as': dict(other=torch.zeros(2, 4, 36)),
    'permute': dict(dims=(0, 2, 3, 1)), 'transpose': dict(dim0=1, dim1=2), 'swapaxes': dict(axis0=1, axis1=2),
    'swapdims': dict(dim0=1, dim1=2), 'movedim': dict(source=1, destination=3),
    'moveaxis': dict(source=1, destination=3), 'unsqueeze': dict(dim=1), 'chunk': dict(chunks=2, dim=1),
    'split': dict(split_size=2, dim=1), 'split_with_sizes': dict(split_sizes=[1, 3], dim=1),
    'tensor_split': dict(sections=2, dim=1), 'unbind': dict(dim=1), 'narrow': dict(dim=1, start=1, length=2),
    'select': dict(dim=1, index=2), 'index_select': dict(dim=1, index=torch.tensor([0, 2])),
    'gather': dict(dim=1, index=torch.zeros(2, 1, 6, 6, dtype=torch.long)), 'to': dict(dtype=torch.float64),
    'type_as': dict(other=T(1)), 'expand': dict(size=(3, 2, 4, 6, 6)), 'expand_as': dict(other=T(3, 2, 4, 6, 6)),
    'broadcast_to': dict(size=(3, 2, 4, 6, 6)), 'repeat': dict(repeats=(1, 2, 1, 1)),
    'repeat_interleave': dict(repeats=2, dim=1), 'tile': dict(dims=(1, 2, 1, 1)), 'roll': dict(shifts=1, dims=2),
    'flip': dict(dims=(2, 3)), 'rot90': dict(k=1, dims=(2, 3)), 'unflatten': dict(dim=1, sizes=(2, 2)),
    'unfold': dict(dimension=2, size=3, step=1), 'diagonal': dict(dim1=2, dim2=3),
    'pixel_shuffle': dict(upscale_factor=2), 'pixel_unshuffle': dict(downscale_factor=2),
    'channel_shuffle': dict(groups=2), 'mul': dict(other=image()), 'multiply': dict(other=T(4, 1, 1)),
    'div': dict(other=T(4, 1, 1)), 'divide': dict(other=T(1)), 'true_divide': dict(other=image()),
    'add': dict(other=image(), alpha=2), 'sub': dict(other=T(1)), 'subtract': dict(other=image(), alpha=3),
    'rsub': dict(other=image()), 'matmul': dict(other=T(6, 5)), 'bmm': None, 'lerp': dict(end=image(), weight=T(1)),
    'addcmul': dict(tensor1=image(), tensor2=T(1), value=2), 'addcdiv': dict(tensor1=T(4, 1, 1), tensor2=image()),
    'masked_fill': dict(mask=torch.rand(6, 6) > .5, value=T(1)[0]), 'cuda': None,
}.items() if rest is not None} | {
    't': dict(input=T(2, 3)), 'mm': dict(input=T(2, 3), mat2=T(3, 4)), 'bmm': dict(input=T(2, 3, 4), mat2=T(2, 4, 5)),
    'mv': dict(input=T(2, 3), vec=T(3)), 'dot': dict(input=T(3), tensor=T(3)), 'inner': dict(input=T(2, 3), other=T(3)),
    'outer': dict(input=T(2), vec2=T(3)), 'addmm': dict(input=T(5), mat1=T(2, 3), mat2=T(3, 5), beta=2, alpha=.5),
    'addmv': dict(input=T(2), mat=T(2, 3), vec=T(3)), 'addr': dict(input=T(2, 3), vec1=T(2), vec2=T(3)),
    'baddbmm': dict(input=T(2, 3, 5), batch1=T(2, 3, 4), batch2=T(2, 4, 5)),
    'addbmm': dict(input=T(3, 5), batch1=T(2, 3, 4), batch2=T(2, 4, 5))}
NEEDS_GPU = {'cuda'}


def spaced(dimensions, transposed=False):
    size = (5,) * dimensions
    weight = T(4, 2, *(3,) * dimensions) if transposed else T(6, 2, *(3,) * dimensions)
    return dict(input=T(2, 4, *size), weight=weight, bias=T(4 if transposed else 6), stride=2, padding=1, groups=2)


FUNCTIONS = {
    torch.split: dict(tensor=image(), split_size_or_sections=[1, 3], dim=1),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate, torch.stack), dict(tensors=[image(), image()], dim=1)),
    **dict.fromkeys((torch.hstack, torch.vstack, torch.dstack), dict(tensors=[image(), image()])),
    F.conv1d: spaced(1), F.conv2d: spaced(2), F.conv3d: spaced(3), F.conv_transpose1d: spaced(1, True),
    F.conv_transpose2d: spaced(2, True), F.conv_transpose3d: spaced(3, True),
    F.linear: dict(input=T(2, 3), weight=T(4, 3), bias=T(4)),
    F.bilinear: dict(input1=T(2, 3), input2=T(2, 4), weight=T(5, 3, 4), bias=T(5)),
    F.avg_pool1d: dict(input=T(2, 3, 8), kernel_size=2), F.avg_pool2d: dict(input=image(), kernel_size=3, padding=1),
    F.avg_pool3d: dict(input=T(2, 3, 4, 4, 4), kernel_size=2),
    F.adaptive_avg_pool1d: dict(input=T(2, 3, 8), output_size=3),
    F.adaptive_avg_pool2d: dict(input=image(), output_size=4),
    F.adaptive_avg_pool3d: dict(input=T(2, 3, 4, 4, 4), output_size=2),
    F.interpolate: [dict(input=image(), scale_factor=2., mode=mode) for mode in (
        'nearest', 'nearest-exact', 'bilinear', 'bicubic', 'area')],
    F.pad: [dict(input=image(), pad=(1, 2, 1, 0), mode=mode) for mode in ('constant', 'reflect', 'replicate',
                                                                          'circular')],
    F.unfold: dict(input=image(), kernel_size=2), F.fold: dict(input=T(2, 12, 9), output_size=4, kernel_size=2),
    F.grid_sample: [dict(input=image(), grid=T(2, 3, 3, 2).clamp(-1, 1), mode=mode, align_corners=False) for mode in (
        'bilinear', 'nearest', 'bicubic')],
    **dict.fromkeys((F.dropout, F.alpha_dropout, F.dropout2d), dict(input=image(), p=.3, training=False)),
    F.dropout1d: dict(input=T(2, 3, 4), training=False), F.dropout3d: dict(input=T(2, 3, 4, 4, 4), training=False),
    F.batch_norm: dict(input=T(5, 4), running_mean=T(4), running_var=T(4).abs() + 1, weight=T(4), bias=T(4),
                       training=False),
    F.instance_norm: dict(input=image(), running_mean=T(4), running_var=T(4).abs() + 1, use_input_stats=False),
    torch.tensordot: dict(a=T(2, 3, 4), b=T(3, 4, 5), dims=2),
    operations.of_size: dict(input=image(), size=tuple(image().shape[1:])),
    operations.assigned: dict(input=image(), index=(slice(None), 0), value=image()[:, 0]),
    torch.where: dict(condition=torch.rand(6, 6) > .5, input=image(), other=image()),
    # Without names: positional arguments.
    torch.einsum: ('bci,cd->bdi', T(2, 3, 4), T(3, 5)), operator.add: (image(), image()),
    operator.sub: (image(), image()), operator.mul: (image(), image()), operator.truediv: (image(), image()),
    operator.neg: (image(),), operator.pos: (image(),), operator.getitem: (image(), (slice(None), [0, 2])),
    operator.matmul: (T(2, 3), T(3, 4))}
POSITIONAL = {torch.einsum: 'args', operator.getitem: 'ab'}

MODULES = {
    nn.Linear: (nn.Linear(6, 3), image()), nn.Flatten: (nn.Flatten(), image()),
    nn.Unflatten: (nn.Unflatten(1, (2, 2)), image()), nn.Fold: (nn.Fold(4, 2), T(2, 12, 9)),
    nn.Unfold: (nn.Unfold(2), image()), nn.PixelShuffle: (nn.PixelShuffle(2), image()),
    nn.PixelUnshuffle: (nn.PixelUnshuffle(2), image()), nn.ChannelShuffle: (nn.ChannelShuffle(2), image()),
    nn.Upsample: (nn.Upsample(scale_factor=2, mode='bicubic'), image()), nn.Identity: (nn.Identity(), image()),
    nn.AlphaDropout: (nn.AlphaDropout(), image()), nn.FeatureAlphaDropout: (nn.FeatureAlphaDropout(), image()),
    nn.Dropout: (nn.Dropout(), image()), nn.SyncBatchNorm: None,  # runs on GPUs alone
    nn.modules.batchnorm._BatchNorm: (nn.BatchNorm2d(4), image())}
for dimensions in (1, 2, 3):
    x = T(2, 4, *(6,) * dimensions)
    for kind, arguments in {'Conv': (4, 6, 3), 'ConvTranspose': (4, 6, 3, 2), 'AvgPool': (2,), 'AdaptiveAvgPool': (2,),
                            'Dropout': (), 'ZeroPad': (1,), 'ConstantPad': (1, 2.), 'CircularPad': (1,),
                            'ReflectionPad': (1,), 'ReplicationPad': (1,)}.items():
        MODULES[getattr(nn, f'{kind}{dimensions}d')] = getattr(nn, f'{kind}{dimensions}d')(*arguments), x
    MODULES[getattr(nn, f'InstanceNorm{dimensions}d')] = getattr(nn, f'InstanceNorm{dimensions}d')(
        4, track_running_stats=True, affine=True), x


def floats(value):
    return isinstance(value, (torch.Tensor, list)) and all(
        isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves(value))


def assert_affine(function, given, names):
    """f(a x + (1 - a) y) = a f(x) + (1 - a) f(y) where the named arguments vary together."""
    def call(values):
        return [value.double() for value in leaves(function(values))]

    for a in (.3, -1.7):
        x, y = ({name: torch.utils._pytree.tree_map(torch.randn_like, given[name]) for name in names} for _ in 'xy')
        mixed = {name: torch.utils._pytree.tree_map(lambda one, other: a * one + (1 - a) * other, x[name], y[name])
                 for name in names}
        for left, one, other in zip(*(call(given | values) for values in (mixed, x, y))):
            torch.testing.assert_close(left, a * one + (1 - a) * other, rtol=1e-4, atol=1e-4)


def check(rule, function, given):
    """All subsets of its arguments that a rule allows to vary, and at least the first argument."""
    names = [name for name, value in given.items() if floats(value)]
    allowed = [subset for count in range(1, len(names) + 1) for subset in itertools.combinations(names, count)
               if rule.allows(set(subset))]
    assert (names[0],) in allowed
    for subset in allowed:
        assert_affine(function, given, subset)


@pytest.mark.parametrize('name', sorted(operations.AFFINE_OPERATIONS))
def test_operation_is_affine_as_function_and_as_method(name):
    if name in NEEDS_GPU:
        pytest.skip('where there is a GPU, test_cuda.py moves tensors')
    given, rule = EXAMPLES[name], operations.AFFINE_OPERATIONS[name]
    first = next(iter(given))
    if name in operations.AFFINE_METHODS:
        check(rule, lambda values: getattr(values[first], name)(**{k: values[k] for k in values if k != first}), given)
    function = getattr(torch, name, None)
    if callable(function) and function not in FUNCTIONS:
        check(operations.AFFINE_FUNCTIONS[function], lambda values: function(**values), given)
    assert name in operations.AFFINE_METHODS or function in operations.AFFINE_FUNCTIONS


OTHERS = [f for f in operations.AFFINE_FUNCTIONS if f in FUNCTIONS or f not in {
    getattr(torch, name, None) for name in operations.AFFINE_OPERATIONS}]


@pytest.mark.parametrize('function', OTHERS, ids=lambda f: f'{f.__module__}.{f.__name__}')
def test_function_is_affine(function):
    rule, examples = operations.AFFINE_FUNCTIONS[function], FUNCTIONS[function]
    for given in examples if isinstance(examples, list) else [examples]:
        if isinstance(given, dict):
            check(rule, lambda values: function(**values), given)
        elif function is torch.einsum:  # one operand at a time: see _several_vary
            for place in (1, 2):
                assert_affine(lambda values: function(*[values[i] for i in range(3)]), dict(enumerate(given)), [place])
        else:
            check(rule, lambda values: function(*values.values()), dict(zip('ab', given)))


@pytest.mark.parametrize('kind', operations.AFFINE_MODULES, ids=lambda kind: kind.__name__)
def test_module_is_affine_in_evaluation(kind):
    if MODULES[kind] is None:
        pytest.skip('this module runs on GPUs alone')
    module, x = MODULES[kind]
    module = module.double().eval()
    for buffer in (b for name, b in module.named_buffers() if name.startswith('running')):
        buffer.uniform_(.5, 2)
    with torch.no_grad():
        assert_affine(lambda values: module(values['x']), dict(x=x), ['x'])


def test_attributes_are_affine():
    for name in operations.AFFINE_ATTRIBUTES:
        assert_affine(lambda values: getattr(values['x'], name), dict(x=T(2, 3)), ['x'])


class Behind(nn.Module):
    """An operation behind a ReLU, on what varies in time."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(F.relu(x))


def verdict(operation):
    """What is said against the last node of the operation, None where it is affine."""
    network = trace(Behind(operation))
    spell_rectifiers(network)
    varies = varying_nodes(network.graph)
    found = [objection(node, varies) for node in network.graph.nodes if relu_ceiling(node) is None]
    return next((problem for problem in found if problem is not None), None)


NOT_AFFINE = {
    'div, floor': lambda x: torch.div(x, .5, rounding_mode='floor'),
    'div, trunc': lambda x: x.div(.5, rounding_mode='trunc'),
    'divide, floor, by name': lambda x: torch.divide(input=x, other=.5, rounding_mode='floor'),
    'floor_divide': lambda x: torch.floor_divide(x, .5), '//': lambda x: x // .5, '%': lambda x: x % .5,
    'mul by name': lambda x: torch.mul(input=x, other=x + 1), 'mul, method': lambda x: x.mul(other=x),
    '*': lambda x: x * (1 - x), 'multiply': lambda x: torch.multiply(x, other=x), '**': lambda x: x ** 2,
    'matmul by name': lambda x: torch.matmul(input=x, other=x), '@': lambda x: x @ x.mT,
    'bmm': lambda x: torch.bmm(x[0], mat2=x[1]), 'einsum': lambda x: torch.einsum('nchw,nchw->nc', x, x),
    'div by what varies': lambda x: torch.div(x, other=x + 1), '1 / x': lambda x: 1 / (x + 1),
    'rounding to integers': lambda x: x.to(torch.int32).float(),
    'rounding to integers, by name': lambda x: x.to(dtype=torch.uint8),
    'sum of integers': lambda x: x.sum(dtype=torch.int64),
    'weights that vary': lambda x: F.conv2d(input=x, weight=x[:, :, :1, :1]),
    'linear, weights that vary': lambda x: F.linear(x, weight=x[0, 0]),
    'addmm of two': lambda x: torch.addmm(x[0, 0], mat1=x[0, 0], mat2=x[0, 0]),
    'addcmul of two': lambda x: torch.addcmul(x, tensor1=x, tensor2=x),
    'lerp of three': lambda x: torch.lerp(x, x + 1, x),
    'where, its condition varies': lambda x: torch.where(x > .5, x, 0.),
    'masked_fill, its mask varies': lambda x: x.masked_fill(mask=x > .5, value=0.),
    'indices that vary': lambda x: x[x > .5],
    'grid that varies': lambda x: F.grid_sample(x, grid=x.permute(0, 2, 3, 1)[..., :2], align_corners=False),
    'batch_norm of the batch': lambda x: F.batch_norm(x, None, None, training=True),
    'instance_norm of the image': lambda x: F.instance_norm(x), 'dropout in training': lambda x: F.dropout(x, .5),
    'dropout in training, by name': lambda x: F.dropout(input=x, p=.5, training=True),
    'BatchNorm2d of the batch': nn.BatchNorm2d(4, track_running_stats=False), 'InstanceNorm2d': nn.InstanceNorm2d(4),
    'GroupNorm': nn.GroupNorm(1, 4), 'LeakyReLU': nn.LeakyReLU(), 'clamp elsewhere': lambda x: x.clamp(min=.5),
    'threshold elsewhere': lambda x: F.threshold(x, .5, 0.),
    'maximum of two': lambda x: torch.maximum(x, x.flip(3))}


@pytest.mark.parametrize('operation', NOT_AFFINE.values(), ids=NOT_AFFINE)
def test_what_is_not_affine_is_refused(operation):
    assert verdict(operation) is not None
    with pytest.raises(mmsnn.ConversionError):
        mmsnn.convert(Behind(operation), 4)


AFFINE = {
    'div by name': lambda x: torch.div(input=x, other=.5, rounding_mode=None),
    'mul by name': lambda x: torch.mul(input=x, other=2.), 'mul by a size': lambda x: x * x.shape[1],
    'view': lambda x: x.view(x.size(0), -1), 'lerp': lambda x: torch.lerp(x, end=x + 1, weight=.3),
    'interpolate': lambda x: F.interpolate(input=x, size=x.shape[2:], mode='bicubic'),
    'pad': lambda x: F.pad(x, pad=(1, 1, 1, 1), mode='reflect'), 'mT': lambda x: x.mT,
    'sum, as in NumPy': lambda x: torch.sum(x, axis=1), 'mean, as in NumPy': lambda x: x.mean(axis=2, keepdims=True),
    'ConvTranspose3d': nn.Sequential(nn.Unflatten(1, (2, 2)), nn.ConvTranspose3d(2, 3, 2)),
    'running statistics': nn.InstanceNorm2d(4, track_running_stats=True),
    'dropout': lambda x: F.dropout(x, training=False),
    'subclass that changes nothing': type('Norm', (nn.BatchNorm2d,), {})(4)}


@pytest.mark.parametrize('operation', AFFINE.values(), ids=AFFINE)
def test_what_is_affine_is_not_refused(operation):
    assert verdict(operation) is None


def test_subclass_that_cannot_be_traced_is_not_what_it_inherits_from():
    class Gated(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    network = trace(Behind(Gated(4, 4, 1)))
    node = next(node for node in network.graph.nodes if module_of(node) is not None)
    assert 'cannot be traced' in objection(node, varying_nodes(network.graph))
