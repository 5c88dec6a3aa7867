"""The many forms in which the same network may be written, and what is refused in one line."""
import copy
import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import mmsnn
from mmsnn.analysis.errors import channel_errors

from networks import leaves, randomise_norms


class Spelt(nn.Module):
    """A convolution, an operation on what it gives, and a convolution."""

    def __init__(self, operation):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.register_buffer('zero', torch.zeros(4, 1, 1))
        self.six = nn.Parameter(torch.tensor(6.))
        self.operation = operation

    def forward(self, x):
        x = 3 * self.first(x)
        return self.last(self.operation(x) if isinstance(self.operation, nn.Module) else self.operation(self, x))


def images(*shape, dtype=torch.float32):
    return torch.randn(*(shape or (2, 3, 8, 8)), dtype=dtype, generator=torch.Generator().manual_seed(0))


def converted(ann, x=None, time_steps=64, **options):
    """A calibrated network of the same function as the ANN, whose many steps come close to it."""
    x, ann = images() if x is None else x, ann.eval()
    snn = mmsnn.convert(ann, time_steps, **options)
    with torch.no_grad():
        expected = ann(x)
        for value, right in zip(leaves(snn.network(x)), leaves(expected)):
            torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-4)
    mmsnn.calibrate(snn, [x], progress=False)
    output = snn(x)
    for value, right in zip(leaves(output), leaves(expected)):
        assert value.dtype == right.dtype and value.shape == right.shape
        assert (value - right).norm() < .05 * right.norm()
    return snn


RECTIFIERS = {
    'relu by name': (math.inf, lambda net, x: F.relu(input=x)),
    'relu in place by name': (math.inf, lambda net, x: F.relu(input=x, inplace=True)),
    'clamp(min=0)': (math.inf, lambda net, x: x.clamp(min=0)),
    'clamp(min=0, max=None)': (math.inf, lambda net, x: torch.clamp(x, 0, None)),
    'clamp_(0)': (math.inf, lambda net, x: x.clamp_(0)), 'torch.clamp_': (math.inf, lambda net, x: torch.clamp_(x, 0.)),
    'clamp_min': (math.inf, lambda net, x: x.clamp_min(0)), 'clip': (6., lambda net, x: torch.clip(x, 0., 6.)),
    'clamp(0, 6)': (6., lambda net, x: x.clamp(0, 6)),
    'by name': (4., lambda net, x: torch.clamp(input=x, max=4, min=0)),
    'clamp of tensors': (6., lambda net, x: torch.clamp(x, net.zero, net.six)),
    'maximum(x, 0)': (math.inf, lambda net, x: torch.maximum(x, torch.tensor(0.))),
    'maximum(0, x)': (math.inf, lambda net, x: torch.maximum(input=net.zero, other=x)),
    'max of a buffer': (math.inf, lambda net, x: torch.max(x, net.zero)),
    'max, method': (math.inf, lambda net, x: x.max(other=torch.zeros_like(x))),
    'fmax': (math.inf, lambda net, x: torch.fmax(x, x.new_zeros(1))),
    'threshold': (math.inf, lambda net, x: F.threshold(x, 0, 0)),
    'threshold by name': (math.inf, lambda net, x: F.threshold(x, value=0., threshold=0.)),
    'leaky_relu(0)': (math.inf, lambda net, x: F.leaky_relu(x, 0.)),
    'hardtanh': (2., lambda net, x: F.hardtanh(x, 0., 2.)), 'hardtanh_': (2., lambda net, x: F.hardtanh_(x, 0., 2.)),
    'hardtanh by name': (6., lambda net, x: F.hardtanh(x, max_val=6., min_val=0.)),
    'relu6': (6., lambda net, x: F.relu6(input=x, inplace=True)),
    'relu, then clamp(max)': (6., lambda net, x: F.relu(x).clamp(max=6)),
    'clamp(max), then relu': (6., lambda net, x: x.clamp(max=6).relu()),
    'minimum and maximum': (6., lambda net, x: torch.minimum(torch.maximum(x, net.zero), net.six)),
    'nn.Hardtanh': (2., nn.Hardtanh(0, 2)), 'nn.Threshold': (math.inf, nn.Threshold(0, 0)),
    'nn.ReLU6': (6., nn.ReLU6(inplace=True)), 'nn.LeakyReLU(0)': (math.inf, nn.LeakyReLU(0.)),
    'subclass': (math.inf, type('Activation', (nn.ReLU,), {})())}


@pytest.mark.parametrize('ceiling, operation', RECTIFIERS.values(), ids=RECTIFIERS)
def test_every_spelling_of_relu_becomes_one_layer_of_neurons(ceiling, operation):
    snn = converted(Spelt(operation))
    assert [neuron.ceiling for neuron in snn.neurons.values()] == [ceiling]


def test_clips_elsewhere_are_no_neurons():
    for operation in (lambda net, x: F.relu(x).clamp(1, 6), lambda net, x: F.relu(F.threshold(F.relu(x), 0, .5)),
                      lambda net, x: torch.maximum(F.relu(x), net.six), lambda net, x: F.relu(x).max(0)[0]):
        with pytest.raises(mmsnn.ConversionError):
            mmsnn.convert(Spelt(operation), 4)


class SamePadding(nn.Conv2d):
    """TensorFlow's padding: as many zeros as the size of the image asks for, the odd one at the end."""

    def forward(self, x):
        height, width = x.shape[-2:]
        pads = []
        for size, kernel, stride in zip((width, height), self.kernel_size, self.stride):
            total = (math.ceil(size / stride) - 1) * stride + kernel - size
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(input=x, weight=weight, bias=self.bias, stride=self.stride, padding=self.padding,
                        groups=self.groups)


class Overridden(nn.Conv2d):
    """What of torch's own forward() a subclass may override."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight * 2, bias)


class Transposed(nn.ConvTranspose2d):
    def forward(self, x):
        return F.conv_transpose2d(x, self.weight.abs(), self.bias, self.stride, self.padding, self.output_padding,
                                  self.groups, self.dilation)


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), bias=self.bias)


class Product(nn.Linear):
    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight.t())


class Matrix(nn.Linear):
    def forward(self, x):
        return x @ self.weight.t() + self.bias


def chain(*layers):
    """Layers with batch normalisation and ReLU behind each, applied twice where shapes allow it."""
    return nn.Sequential(*[part for layer in layers for part in (
        layer, nn.BatchNorm1d(layer.out_features) if isinstance(layer, nn.Linear) else
        nn.BatchNorm2d(layer.out_channels), nn.ReLU())])


FUNCTIONAL = {
    'same padding': lambda: chain(SamePadding(3, 6, 3, stride=2), SamePadding(6, 6, 3, groups=6), SamePadding(6, 8, 1)),
    'standardised': lambda: chain(Standardised(3, 6, 3), Standardised(6, 6, 3, stride=2, groups=2)),
    'overridden': lambda: chain(Overridden(3, 6, 3, bias=False), Overridden(6, 4, 3)),
    'transposed': lambda: chain(nn.Conv2d(3, 4, 1), Transposed(4, 6, 3, stride=2, groups=2, output_padding=1),
                                nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False))}


@pytest.mark.parametrize('make', FUNCTIONAL.values(), ids=FUNCTIONAL)
def test_subclasses_become_the_layers_that_they_are(make):
    torch.manual_seed(0)
    ann = randomise_norms(make())
    layers = sum(isinstance(module, nn.modules.conv._ConvNd) for module in ann.modules())
    snn = converted(ann)
    kinds = [type(module) for module in snn.network.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    assert len(kinds) == layers and set(kinds) <= {nn.Conv2d, nn.ConvTranspose2d}
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in snn.network.modules())


@pytest.mark.parametrize('kind', [Scaled, Product, Matrix], ids=lambda kind: kind.__name__)
def test_products_with_constant_matrices_become_linear_layers(kind):
    torch.manual_seed(0)
    ann = nn.Sequential(kind(6, 8), nn.ReLU(), kind(8, 4))
    snn = converted(ann, images(3, 6))
    assert sum(isinstance(module, nn.Linear) for module in snn.network.modules()) == 2


@pytest.mark.parametrize('dimensions', [1, 2, 3])
@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions_of_every_dimension_fold_batch_normalisation(dimensions, groups):
    torch.manual_seed(0)
    conv, transposed, norm = (getattr(nn, f'{name}{dimensions}d') for name in ('Conv', 'ConvTranspose', 'BatchNorm'))
    ann = randomise_norms(nn.Sequential(
        conv(4, 6, 3, groups=groups), norm(6), nn.ReLU(), transposed(6, 4, 3, 2, groups=groups, bias=False), norm(4),
        nn.ReLU(), conv(4, 2, 1)))
    snn = converted(ann, images(2, 4, *(6,) * dimensions))
    assert not any(isinstance(module, norm) for module in snn.network.modules())


def test_layer_called_twice_stays_one_layer():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 1), Standardised(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(F.relu(self.conv(F.relu(self.stem(x)))))

    snn = converted(Shared())
    assert sum(isinstance(module, nn.Conv2d) for module in snn.network.modules()) == 2


def pruned(conv):
    return prune.l1_unstructured(conv, 'weight', .4)


COMPUTED = {
    'pruned': pruned, 'pruned twice': lambda conv: prune.random_unstructured(pruned(conv), 'weight', .3),
    'bias too': lambda conv: prune.l1_unstructured(prune.ln_structured(conv, 'weight', .5, 2, 0), 'bias', 1),
    'weight_norm': weight_norm, 'spectral_norm': spectral_norm,
    'parametrised weight_norm': parametrizations.weight_norm,
    'parametrised spectral_norm': parametrizations.spectral_norm, 'orthogonal': parametrizations.orthogonal}


@pytest.mark.filterwarnings('ignore:.*weight_norm')
@pytest.mark.parametrize('compute', COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize('trained', [False, True], ids=['loaded', 'just trained'])
def test_computed_weights_become_plain_ones(compute, trained):
    torch.manual_seed(0)
    ann = randomise_norms(nn.Sequential(
        compute(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6), nn.ReLU(), compute(nn.Conv2d(6, 4, 3)), nn.BatchNorm2d(4),
        nn.ReLU(), nn.Flatten(), compute(nn.Linear(64, 5))))
    if trained:
        ann.train()(images()).sum().backward()  # computed weights have a gradient now, and cannot be copied
    before = {key: value.clone() for key, value in ann.state_dict().items()}
    snn = converted(ann)
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items()), 'the ANN is untouched'
    kinds = [type(module) for module in snn.network.modules() if list(module.parameters(recurse=False))]
    assert kinds == [nn.Conv2d, nn.Conv2d, nn.Linear]


def test_other_hooks_keep_batch_normalisation_where_it_is():
    torch.manual_seed(0)
    ann = randomise_norms(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    ann[0].register_forward_hook(lambda module, inputs, output: output.abs())
    converted(ann)


class Static(nn.Module):
    """Whatever is computed from the image or from parameters alone needs no counterpart."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.mix = nn.Parameter(torch.tensor([.3, -.1, .5]))
        self.register_buffer('mean', torch.rand(3, 1, 1))

    def forward(self, x):
        x = torch.log1p(x.abs()) - torch.sigmoid(self.mean)
        weights = F.relu(self.mix)  # as in a weighted feature pyramid
        weights = torch.softmax(weights / (weights.sum() + 1e-4), 0)
        y = F.relu(self.conv(x))
        return self.last(weights[0] * y + weights[1] * y.mean())


def test_what_does_not_vary_in_time_is_not_refused():
    snn = converted(Static())
    assert len(snn.neurons) == 1, 'the ReLU on parameters is a constant'
    assert set(dict(snn.network.named_parameters())) == {'conv.weight', 'conv.bias', 'last.weight', 'last.bias'}


def test_pattern_may_name_what_does_not_vary():
    assert len(mmsnn.convert(Static(), 4, exclude=['log1p']).neurons) == 1


def test_network_of_other_activations_alone_is_refused():
    with pytest.raises(mmsnn.ConversionError, match='1: SiLU'):
        mmsnn.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1)), 4)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def features(self, x, indices=(0, 1)):
        y = F.relu(self.a(x))
        z = F.relu(self.b(y))
        return tuple((y, z)[index] for index in indices)


class Star(Two):
    def forward(self, *inputs):
        return self.features(inputs[0])


class Keywords(Two):
    def forward(self, x, **options):
        return self.features(x, **options)


class KeywordOnly(Two):
    def forward(self, *, image, scale=1.):
        return self.features(scale * image)


class Defaults(Two):
    def forward(self, x, mask=None, indices=[1, 0], meta={'a': (1, 2)}, *, mode='tensor', sizes=(1, [2])):  # noqa: B006
        return self.features(x, indices) if mode == 'tensor' and mask is None and meta['a'] else None


class AllDefaults(Two):
    def forward(self, x=None, indices=(0, 1)):
        return self.features(x, indices)


@pytest.mark.parametrize('network', [Star, Keywords, Defaults, AllDefaults], ids=lambda n: n.__name__)
def test_arguments_with_defaults_and_stars(network):
    converted(network())


def test_argument_by_keyword_alone():
    ann, x = KeywordOnly().eval(), images()
    snn = mmsnn.convert(ann, 4)
    for value, expected in zip(snn.network(image=x), ann(image=x)):
        torch.testing.assert_close(value, expected)


def test_modules_and_functions_called_by_keyword():
    class Keyword(Two):
        def __init__(self):
            super().__init__()
            self.drop, self.norm, self.act = nn.Dropout(.5), nn.BatchNorm2d(6), nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.act(input=self.norm(input=self.a(input=x)))
            y = self.drop(input=F.max_pool2d(kernel_size=2, input=y))
            return torch.mean(input=F.dropout(input=self.b(input=y), training=self.training), dim=(2, 3))

    snn = converted(randomise_norms(Keyword()), images(2, 3, 12, 12))
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Dropout)) for module in snn.network.modules())


Pair = namedtuple('Pair', 'low high')


@dataclass
class Features:
    low: torch.Tensor
    high: torch.Tensor


STRUCTURES = {
    'list': lambda x, y, z: [y, z], 'dict': lambda x, y, z: {'y': y, 'z': z}, 'tuple': lambda x, y, z: (y, z),
    'OrderedDict': lambda x, y, z: OrderedDict(z=z, y=y), 'namedtuple': lambda x, y, z: Pair(y, z),
    'dataclass': lambda x, y, z: Features(y, z), 'nested': lambda x, y, z: (y, [z, {'p': Pair(z, OrderedDict(y=y))}]),
    'None': lambda x, y, z: (y, None, 'name', 3), 'twice': lambda x, y, z: [y, y], 'input': lambda x, y, z: (x, z),
    'parts and sizes': lambda x, y, z: (y.chunk(2, 1), F.relu(z).split(1, 1)[1:], z.shape[-2:], y.size(1), x.shape[3])}


@pytest.mark.parametrize('structure', STRUCTURES.values(), ids=STRUCTURES)
def test_outputs_have_the_structure_of_the_anns(structure):
    class Structured(Two):
        def forward(self, x):
            return structure(x, *self.features(x))

    def described(value):
        if isinstance(value, dict):
            return type(value), [(key, described(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return type(value), list(map(described, value))
        if isinstance(value, Features):
            return Features, described(value.low), described(value.high)
        return tuple(value.shape) if isinstance(value, torch.Tensor) else value

    ann, x = Structured().eval(), images()
    snn = mmsnn.convert(ann, 4)
    mmsnn.calibrate(snn, [x], progress=False)
    for run in (snn, snn.network, snn.quantised, copy.deepcopy(snn)):
        assert described(run(x)) == described(ann(x))
    output = snn(x)
    if isinstance(output, (list, dict)):
        output.clear()  # it is the caller's
        assert described(snn(x)) == described(ann(x))


def test_float64_networks_stay_float64():
    torch.manual_seed(0)
    ann = randomise_norms(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
                                        nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Conv2d(4, 3, 1))).double()
    x = images(dtype=torch.float64)
    for pipeline in ('signed', 'light', 'advanced'):
        snn = mmsnn.convert(ann, 64)
        mmsnn.calibrate(snn, [x], pipeline, progress=False, **({'iterations': 5} if pipeline == 'advanced' else {}))
        assert {value.dtype for value in snn.parameters()} == {torch.float64}
        assert all(value.dtype == torch.float64 for neuron in snn.neurons.values() for value in neuron.buffers())
        output = snn(x)
        assert output.dtype == torch.float64 and (output - ann.eval()(x)).norm() < .1 * ann(x).norm()
    for options in (dict(compile=True), dict(dtype='bfloat16')):
        with pytest.raises(mmsnn.ConversionError, match='a float64 network is simulated in float64'):
            mmsnn.convert(ann, 4, **options)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_refused_with_what_to_do(dtype):
    for ann in (Two().to(dtype), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 4, dtype=dtype))):
        with pytest.raises(mmsnn.ConversionError, match=r'convert a float32 copy, model.float\(\); dtype'):
            mmsnn.convert(ann, 4)


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()


WRAPPED = {
    'DataParallel': (lambda: nn.DataParallel(plain()), 'the network is a DataParallel.*pass .module'),
    'DataParallel inside': (lambda: nn.Sequential(nn.Identity(), nn.DataParallel(plain())), '1 is a DataParallel'),
    'scripted': (lambda: torch.jit.script(plain()), 'torch.jit has scripted or traced it; pass the network'),
    'traced': (lambda: torch.jit.trace(plain(), images()), 'torch.jit has scripted or traced it'),
    'compiled': (lambda: torch.compile(plain()), 'OptimizedModule.*pass ._orig_mod'),
    'quantised': (lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4), nn.ReLU())),
                  '0 is a quantised Linear.*pass the network before quantisation')}


@pytest.mark.filterwarnings('ignore:.*torch.jit', 'ignore:.*torch.ao.quantization')
@pytest.mark.parametrize('make, message', WRAPPED.values(), ids=WRAPPED)
def test_wrapped_and_compiled_networks_are_refused_in_one_line(make, message):
    with pytest.raises(mmsnn.ConversionError, match=message) as error:
        mmsnn.convert(make(), 4)
    assert '\n' not in str(error.value)


def test_batch_norm_as_a_function_on_vectors():
    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x):
            norm = self.norm
            x = F.batch_norm(self.first(x), norm.running_mean, norm.running_var, weight=norm.weight, bias=norm.bias,
                             training=self.training)
            return self.last(F.relu(x))

    snn = converted(randomise_norms(Vectors()), images(4, 6))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in snn.network.modules())


class Numbered(nn.Module):
    """Modules whose paths differ in a dot and an underscore alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.stem_2 = nn.Conv2d(4, 5, 1)
        self.fire_relu = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.fire_relu(self.stem_2(F.relu(self.stem(x))))


def test_modules_of_similar_names_stay_different_ones():
    converted(Numbered())


class Counter(nn.Module):
    """One number for each image, which a neuron gives."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)
        nn.init.constant_(self.fc.bias, 1.)

    def forward(self, x):
        return F.relu(self.fc(F.relu(self.conv(x)).mean((2, 3))).squeeze(1)) * 2


@pytest.mark.parametrize('pipeline, options', [
    ('light', dict(bias_per_step=True)), ('advanced', dict(iterations=2, potential='position')), ('rmp', {}),
    ('none', dict(threshold='balanced')), ('signed', {}), ('differential', {})], ids=str)
def test_a_neuron_for_each_image_is_one_channel(pipeline, options):
    torch.manual_seed(0)
    ann, x = Counter().eval(), images(6, 3, 8, 8)
    snn = mmsnn.convert(ann, 32)
    mmsnn.calibrate(snn, [x[:4], x[4:]], pipeline, progress=False, **options)
    assert [len(neuron.threshold) for neuron in snn.neurons.values()] in ([4, 1], [1, 1])
    assert (snn(x) - ann(x)).norm() < .05 * ann(x).norm()
    assert [len(errors) for errors in channel_errors(snn, mmsnn.convert(ann, 1).network, [x]).values()] == [4, 1]


def test_a_vector_of_weights_gives_one_number_for_each_image():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(8))

        def forward(self, x):
            return F.linear(F.relu(self.first(x)), self.weight)

    converted(Vector(), images(4, 6))
