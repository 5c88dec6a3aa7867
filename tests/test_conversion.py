import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmsnn
from mmsnn.simulation.operations import module_of

from networks import Functional, Residual, leaves, randomise_norms


def calibrated(ann, time_steps, x, pipeline='none', **kwargs):
    snn = mmsnn.convert(ann, time_steps, **kwargs)
    mmsnn.calibrate(snn, [x], pipeline, progress=False)
    return snn


def relative_error(value, reference):
    return ((value - reference).square().sum() / reference.square().sum()).item()


@pytest.mark.parametrize('network', [Residual, Functional], ids=lambda n: n.__name__)
def test_analog_graph_is_the_ann_and_the_ann_is_untouched(network):
    ann = randomise_norms(network())
    before = copy.deepcopy(ann.state_dict())
    ann.train()
    snn = mmsnn.convert(ann, time_steps=4)
    assert ann.training and ann.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(snn.network(x), ann.eval()(x), rtol=1e-4, atol=1e-5)


def test_one_neuron_layer_per_call_site():
    snn = mmsnn.convert(Residual(), 4)
    assert list(snn.neurons) == ['relu', 'relu_1', 'relu_2']
    assert len(mmsnn.convert(Functional(), 4).neurons) == 5


def test_relu6_keeps_its_clip():
    ceilings = [neuron.ceiling for neuron in mmsnn.convert(Functional(), 4).neurons.values()]
    assert sorted(ceilings) == [6.] + [math.inf] * 4


@pytest.mark.parametrize('network', [Residual, Functional], ids=lambda n: n.__name__)
def test_many_steps_approach_the_ann(network):
    ann, x = randomise_norms(network()).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = ann(x)
    errors = []
    for time_steps in (8, 64, 512):
        output = calibrated(ann, time_steps, x)(x)
        assert type(output) is type(expected) or isinstance(output, type(expected))
        errors.append(max(relative_error(o, e) for o, e in zip(leaves(output), leaves(expected))))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_max_pooling_of_spikes_is_max_pooling_of_their_rates():
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            spikes = F.relu(self.second(F.relu(self.first(x))))
            return spikes, F.max_pool2d(spikes, 2)

    x = torch.randn(2, 3, 8, 8)
    for time_steps in (1, 5, 16):
        spikes, pooled = calibrated(Pool(), time_steps, x)(x)
        torch.testing.assert_close(pooled, F.max_pool2d(spikes, 2))


def test_pool_of_the_stem_stands_before_its_neurons():
    snn = mmsnn.convert(Residual(), 4)
    first = snn.neuron_nodes[0]
    assert module_of(first.args[0]).__class__ is nn.MaxPool2d
    assert first.args[0] in snn.plan.static


def test_excluded_relu_sees_the_mean_over_time():
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.act, self.tail = nn.ReLU(), nn.SiLU()

        def forward(self, x):
            x = self.second(self.act(self.first(x)))
            return x, self.tail(x), F.relu(x)

    x = torch.randn(2, 3, 8, 8)
    snn = calibrated(Tail(), 7, x, exclude=['tail', 'relu'])
    assert list(snn.neurons) == ['act']
    mean, silu, relu = snn(x)
    torch.testing.assert_close(silu, F.silu(mean))
    torch.testing.assert_close(relu, F.relu(mean))


def test_include_leaves_the_rest_analog():
    snn = mmsnn.convert(Residual(), 4, include='relu_1')
    assert list(snn.neurons) == ['relu_1']


def test_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match='layer9'):
        mmsnn.convert(Residual(), 4, exclude=['layer9.*'])


def test_everything_that_cannot_be_converted_is_listed_at_once():
    class Untraceable(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.SiLU())
            self.act = nn.GELU()
            self.branch = Untraceable()

        def forward(self, x):
            x = self.branch(self.act(self.block(F.relu(x))))
            return F.relu(x) * torch.sigmoid(x) * F.relu(-x)

    with pytest.raises(mmsnn.ConversionError) as error:
        mmsnn.convert(Bad(), 4)
    for expected in ('block.1: GroupNorm', 'block.2: SiLU', 'act: GELU', 'branch: Untraceable, cannot be traced',
                     '  sigmoid: sigmoid()', 'mul_1: mul()', 'exclude='):
        assert expected in str(error.value), expected


def test_network_that_cannot_be_traced_says_why():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(mmsnn.ConversionError, match='cannot be traced by torch.fx'):
        mmsnn.convert(Branches(), 4)


def test_product_of_two_spiking_streams_is_refused_and_with_a_constant_is_not():
    class Gate(nn.Module):
        def forward(self, x):
            y = F.relu(x)
            return 2 * y * F.relu(-x)

    with pytest.raises(mmsnn.ConversionError, match='mul'):
        mmsnn.convert(Gate(), 4)


def test_norm_is_folded_by_the_graph_not_by_registration_order():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn_b = nn.BatchNorm2d(4)  # registered before, used after
            self.conv_a, self.conv_b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.bn_a = nn.BatchNorm2d(4, affine=False)

        def forward(self, x):
            return self.bn_b(self.conv_b(F.relu(self.bn_a(self.conv_a(x)))))

    ann = randomise_norms(Crossed()).eval()
    snn = mmsnn.convert(ann, 4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in snn.modules())
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(snn.network(x), ann(x), rtol=1e-4, atol=1e-5)


def test_norm_between_shared_convolutions_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn_a, self.bn_b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(self.bn_b(self.conv(F.relu(self.bn_a(self.conv(x))))))

    ann, x = randomise_norms(Shared()).eval(), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(mmsnn.convert(ann, 4).network(x), ann(x), rtol=1e-4, atol=1e-5)


def test_norm_of_tokens_behind_a_linear_layer_is_not_folded():
    ann, x = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 5, 3)
    torch.testing.assert_close(mmsnn.convert(randomise_norms(ann).eval(), 4).network(x), ann(x))


@pytest.mark.parametrize('arguments', [dict(time_steps=0), dict(time_steps=2.5), dict(time_steps=4, readout='rate'),
                                       dict(time_steps=4, chunk_steps=0)], ids=str)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match='must be'):
        mmsnn.convert(Residual(), **arguments)


class InPlace(nn.Module):
    """Operations in place on a tensor that is read afterwards, under its own name or another."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.conv, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.conv(x)
        if self.form == 'module':
            return self.other(self.relu(x)) + x
        if self.form == 'function':
            return self.other(F.relu(x, True)) + x
        if self.form == 'method, its result not used':
            x.relu_()
            return F.relu(self.other(x))
        if self.form == 'sum':
            alias = x
            alias += 1
            return F.relu(x) + alias
        if self.form == 'sizes are no tensors':
            rows = more = x.size(2)
            more += 1
            return F.relu(F.interpolate(x, size=(rows, more)))
        x[:, 1:].relu_()
        return x


@pytest.mark.parametrize('form', ['module', 'function', 'method, its result not used', 'sum', 'sizes are no tensors'])
def test_what_is_changed_in_place_is_read_as_changed(form):
    ann, x = InPlace(form).eval(), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(mmsnn.convert(ann, 4).network(x), ann(x))


def test_part_of_a_tensor_changed_in_place_is_refused():
    with pytest.raises(mmsnn.ConversionError, match='relu_ changes in place a part of conv, which output reads'):
        mmsnn.convert(InPlace('a part'), 4)


def test_everything_lies_where_the_ann_does():
    snn = mmsnn.convert(Residual().eval().to('meta'), 4)
    assert {value.device.type for value in snn.state_dict().values()} == {'meta'}
