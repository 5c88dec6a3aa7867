"""What other people's networks do in ``forward``: every case converts exactly, or is refused by name."""
import math
import pickle
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmsnn
from mmsnn.simulation.plan import is_neuron
from mmsnn.simulation.weighted import weighted_input

from networks import checks_what_it_gets

SIZE = 2, 3, 12, 12


class Net(nn.Module):
    """Two convolutions, and between them whatever a case does."""

    def __init__(self, between, **modules):
        super().__init__()
        self.between = between
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.register_buffer('table', torch.randn(1, 4, 1, 1))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def asks_what_it_got(net, x):
    if isinstance(x, (list, tuple)) or not isinstance(x, (torch.Tensor, nn.Parameter)) or not torch.is_tensor(x):
        x = x[0]
    return torch.where(x > 0, x, 0.) if isinstance(x.shape, torch.Tensor) else F.relu(x)


def assigns_parts(net, x):
    x = F.relu(x)
    shifted = torch.zeros_like(x)
    shifted[:, :, :-1] = x[:, :, 1:]
    shifted[:, 0] += 1
    return shifted


def assigns_to_new(net, x):
    x = F.relu(x)
    wider = x.new_zeros(x.shape[0], 4, x.shape[2], x.shape[3])
    wider[:, ::2] = x[:, 1::2]
    return wider


def changes_a_part_and_puts_it_back(net, x):
    x = F.relu(x)
    part = x[:, 1:].view(x.shape[0], 3, -1)
    part += 1
    x[:, 1:] = part.view(x.shape[0], 3, x.shape[2], x.shape[3]) * .5
    return x


def makes_constants(net, x):
    images, channels, height, width = x.shape
    ramp = torch.linspace(-1, 1, width).view(1, 1, 1, width).expand(images, 1, height, width)
    return F.relu(x) + torch.zeros(images, channels, height, width) + ramp + net.table.expand(images, -1, -1, -1)


def rounds_sizes(net, x):
    height = int(x.shape[2] * 1.5)
    return F.interpolate(F.relu(x), size=(height, max(height - 2, 4))) + len(x)


def pads_to_multiples(net, x):
    height, width = x.shape[2:]
    below, right = (5 - height % 5) % 5, max(math.ceil(width / 5) * 5 - width, 0)
    if below or right > 0:
        x = F.pad(x, (0, right, 0, below))
    x = F.avg_pool2d(F.relu(x), 5).repeat_interleave(5, 2).repeat_interleave(5, 3)
    return x[:, :, :height, :width] if below > 0 else x


CASES = dict(padding=pads_to_multiples, checks=checks_what_it_gets, isinstance=asks_what_it_got,
             assignment=assigns_parts, part=changes_a_part_and_puts_it_back, new_zeros=assigns_to_new,
             constants=makes_constants, sizes=rounds_sizes)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
@pytest.mark.parametrize('options', [{}, dict(example=SIZE)], ids=['any size', 'one size'])
def test_forward_converts_exactly_simulates_and_is_pickled(case, options):
    ann, x = Net(case).eval(), torch.randn(SIZE)
    for coding in ('rate', 'differential'):
        snn = mmsnn.convert(ann, 64 if coding == 'rate' else 8, coding=coding, **options)
        torch.testing.assert_close(snn.network(x[:1]), ann(x[:1]))
        for size in () if options else (10, 11):  # of which the first needs no padding
            torch.testing.assert_close(snn.network(x[..., :size, :size]), ann(x[..., :size, :size]))
        mmsnn.calibrate(snn, [x], progress=False, **(
            dict(threshold='max') if coding == 'rate' else dict(sizes=12)))
        output = snn(x)
        torch.testing.assert_close(output, ann(x), rtol=.05, atol=.05)
        assert torch.equal(pickle.loads(pickle.dumps(snn))(x), output)


def to_a_constant(net, x):
    zeros = torch.zeros(SIZE[0], 4, *SIZE[2:])
    zeros[:, :2] = F.relu(x)[:, 2:]
    return zeros


def to_a_parameter(net, x):
    net.scale.weight[0] = 2.
    return F.relu(x) * net.scale.weight.sum()


def to_a_view(net, x):
    x = F.relu(x)
    x.view(len(x), 4, -1)[:, 0] = 1.
    return x


@pytest.mark.parametrize('case, message', [
    (to_a_constant, 'changes in place _tensor_constant0'), (to_a_parameter, 'changes in place scale.weight'),
    (to_a_view, 'changes in place a part of relu')])
def test_assignments_that_a_trace_would_lose_are_refused(case, message):
    with pytest.raises(mmsnn.ConversionError, match=message):
        mmsnn.convert(Net(case, scale=nn.Linear(2, 2)), 4)


@pytest.mark.parametrize('module', [nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2)],
                         ids=lambda module: type(module).__name__)
def test_hooks_that_change_values_are_part_of_the_network(module):
    module.register_forward_hook(lambda _module, _inputs, output: 2 * output - 1)
    module.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + .5,))
    ann, x = nn.Sequential(nn.Conv2d(3, 4, 3), module, nn.ReLU(), nn.Conv2d(4, 2, 3)).eval(), torch.randn(SIZE)
    ann.register_forward_hook(lambda _module, _inputs, output: output + 3)
    torch.testing.assert_close(mmsnn.convert(ann, 4).network(x), ann(x))


def test_a_forward_that_one_module_alone_has_is_part_of_the_network():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)).eval()
    ann[1].forward = lambda x: F.relu(x - .3)
    ann[2].forward = types.MethodType(lambda self, x: 2 * F.conv2d(x, self.weight) - 1, ann[2])
    x = torch.randn(SIZE)
    for coding in ('rate', 'differential'):
        torch.testing.assert_close(mmsnn.convert(ann, 4, coding=coding).network(x), ann(x))


def test_an_example_that_lacks_an_input_is_refused_by_name():
    class Both(nn.Module):
        def forward(self, left, right):
            return F.relu(left + right)

    with pytest.raises(mmsnn.ConversionError, match='the example has no input right'):
        mmsnn.convert(Both(), 4, example=(torch.zeros(SIZE),))
    with pytest.raises(mmsnn.ConversionError, match='the example has no input right'):
        mmsnn.convert(Both(), 4, example=dict(left=torch.zeros(SIZE), write=torch.zeros(SIZE)))


def test_recurrent_layers_are_refused_by_name_and_can_be_left_analog():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.recur, self.head = nn.Linear(3, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.recur(F.relu(self.embed(x)))[0][:, -1])

    ann, x = Recurrent().eval(), torch.randn(2, 5, 3)
    with pytest.raises(mmsnn.ConversionError, match='recurrent, and the weights within would read no spikes:\n  recur'):
        mmsnn.convert(ann, 8, coding='differential')
    snn = mmsnn.convert(ann, 8, coding='differential', exclude='recur')
    mmsnn.calibrate(snn, [x], sizes=12, progress=False)
    torch.testing.assert_close(snn(x), ann(x), rtol=.02, atol=.02)


def test_every_linear_layer_of_a_whole_transformer_reads_spikes():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.queries = nn.Linear(3, 8), nn.Parameter(torch.randn(1, 4, 8))
            self.transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

        def forward(self, x):
            return self.transformer(self.embed(x), self.queries.expand(x.shape[0], -1, -1))

    ann, x = Translator().eval(), torch.randn(2, 5, 3)
    snn = mmsnn.convert(ann, 8, coding='differential')
    torch.testing.assert_close(snn.network(x), ann(x), rtol=1e-4, atol=1e-5)
    layers = [node for node in snn.graph.nodes if isinstance(snn.plan.modules.get(node), nn.Linear)
              and node in snn.plan.varies]
    read = [weighted_input(node, snn.plan.varies) for node in layers]
    assert len(layers) == 11 and all(map(is_neuron, read))
    mmsnn.calibrate(snn, [x], sizes=12, progress=False)
    torch.testing.assert_close(snn(x), ann(x), rtol=.02, atol=.02)


def test_a_deformable_convolution_is_a_graded_unit():
    ops = pytest.importorskip('torchvision.ops')
    ann = Net(lambda net, x: F.relu(net.deform(F.relu(x), net.offset(F.relu(x)))),
              offset=nn.Conv2d(4, 18, 3, padding=1), deform=ops.DeformConv2d(4, 4, 3, padding=1)).eval()
    x = torch.randn(SIZE)
    snn = mmsnn.convert(ann, 8, coding='differential')
    assert snn.graded == ['deform_conv2d']
    mmsnn.calibrate(snn, [x], sizes=12, progress=False)
    torch.testing.assert_close(snn(x), ann(x), rtol=.02, atol=.02)


def test_other_sizes_than_the_examples_are_refused():
    snn = mmsnn.convert(Net(CASES['sizes']), 4, example=(1, *SIZE[1:]))
    snn.network(torch.randn(3, *SIZE[1:]))
    with pytest.raises(ValueError, match=r'converted for inputs of size \(3, 12, 12\), this one has \(3, 12, 16\)'):
        snn.network(torch.randn(1, 3, 12, 16))


def test_what_is_made_in_inference_mode_works_outside():
    ann, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3)).eval(), torch.randn(SIZE)
    with torch.inference_mode():
        snn = mmsnn.convert(ann, 8, coding='differential')
        mmsnn.calibrate(snn, [x], sizes=12, progress=False)
        inside = snn(x)
    assert torch.equal(snn(x), inside)
    mmsnn.calibrate(snn, x, sizes=8, progress=False)  # a tensor is one batch
    torch.testing.assert_close(snn(x), inside, rtol=.05, atol=.05)


@pytest.mark.parametrize('normalise', [
    nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.weight_norm,
    nn.utils.spectral_norm], ids=lambda function: f'{function.__module__}.{function.__name__}')
@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_normalised_weights_are_pickled_and_loaded(normalise):
    ann = nn.Sequential(normalise(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(SIZE)
    snn = mmsnn.convert(ann, 4)
    torch.testing.assert_close(pickle.loads(pickle.dumps(snn)).network(x), ann(x))
    snn.network.load_state_dict(mmsnn.convert(ann, 4).network.state_dict())


def test_spiking_networks_are_not_converted_again():
    snn = mmsnn.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 4)
    for again in (snn, nn.Sequential(snn, nn.ReLU())):
        with pytest.raises(mmsnn.ConversionError, match='it spikes already; pass the ANN'):
            mmsnn.convert(again, 4)


class Named(nn.Module):
    """Names that Python, or the spiking network, keeps for itself, and modules that are made in ``forward``."""

    def __init__(self):
        super().__init__()
        self.neurons = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.neurons_ = nn.ModuleDict({'class': nn.Conv2d(4, 4, 3)})
        self.scales = nn.ParameterDict({'lambda': torch.full((1,), 2.)})
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = self.neurons[2:](self.neurons[:2](x))
        return nn.Tanh()(self.last(nn.ReLU()(self.neurons_['class'](x)) * self.scales['lambda']))


def test_reserved_names_and_modules_made_in_forward():
    ann, x = Named().eval(), torch.randn(SIZE)
    snn = mmsnn.convert(ann, 8, coding='differential')
    assert list(ann.scales) == ['lambda'] and list(ann.neurons_) == ['class'] and len(snn.neurons) == 4
    torch.testing.assert_close(snn.network(x), ann(x))
    mmsnn.calibrate(snn, [x], sizes=12, progress=False)
    output = pickle.loads(pickle.dumps(snn))(x)
    torch.testing.assert_close(output, ann(x), rtol=.02, atol=.02)
    again = mmsnn.convert(ann, 8, coding='differential')
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again(x), output)
