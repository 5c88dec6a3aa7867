"""Neurons of a rate code for any activation: their equation, their limits, and that every path computes it."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmsnn
from mmsnn.neurons.functions import RateFunction
from mmsnn.neurons.model import advance
from mmsnn.neurons.pipelines import make_pipeline

from networks import Functional, leaves

T = 8
ACTIVATIONS = {'SiLU': nn.SiLU(), 'GELU': nn.GELU(), 'hard-swish': nn.Hardswish(), 'tanh': nn.Tanh(),
               'sigmoid': nn.Sigmoid(), 'slopes by channel': nn.PReLU(8), 'ReLU6': nn.ReLU6()}


class Net(nn.Module):
    """Two activations, a norm that stays graded, a residual branch, and a classifier."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.activation(self.first(x))
        x = x + self.activation(self.norm(self.second(x)))
        return self.head(x.mean((2, 3)))


def calibrated(ann, x, steps=T, **options):
    snn = mmsnn.convert(ann, steps, coding='differential', **options)
    mmsnn.calibrate(snn, [x], 'signed-functions', progress=False)
    return snn


def distance(output, expected):
    return ((output - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_twice_the_steps_half_the_error(name):
    ann, x = Net(ACTIVATIONS[name]).eval(), torch.randn(16, 3, 12, 12)
    found = []
    for steps in (4, 16):
        snn = calibrated(ann, x, steps)
        assert snn.coding == 'rate' and snn.graded == ['norm']
        found.append(distance(snn(x), ann(x)))
        assert distance(snn.quantised(x), ann(x)) < 1.5 * found[-1] + 1e-3, 'which is without time'
    assert found[0] < .05 and found[1] < .5 * found[0], found


def test_equal_to_a_naive_simulation():
    """Steps of the equation, written down again, on numbers whose sums are exact: layer by layer, all T steps."""
    class Chain(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = layer(x)
            return x

    torch.manual_seed(0)
    ann = Chain(nn.Conv2d(2, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Conv2d(4, 3, 1)).double().eval()
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    snn = calibrated(ann, x)
    layers, m = list(snn.neurons.values()), make_pipeline('signed-functions').max_spikes
    sums, numbers, total = [0., 0.], [0., 0.], 0.
    for t in range(1, T + 1):
        value = x
        for index, f in enumerate([F.hardswish, F.silu]):
            conv, neuron = ann[2 * index], layers[index]
            h, b = neuron.threshold.view(-1, 1, 1), neuron.bias.view(-1, 1, 1)
            sums[index] = sums[index] + conv(value) + b
            wanted = t * f(sums[index] / t) / h
            k = (torch.floor(wanted + .5) - numbers[index]).clamp(-m, m)
            numbers[index] = numbers[index] + k
            value = k * h
        total = total + ann[4](value)
    torch.testing.assert_close(snn(x), total / T, rtol=1e-9, atol=1e-9)


def test_with_relu_these_are_signed_neurons_that_round():
    ann, x = Functional().eval(), torch.randn(4, 3, 32, 32)
    snn = mmsnn.convert(ann, T)
    mmsnn.calibrate(snn, [x], 'signed', max_spikes=4, max_rate=2, clip=False, potential=None, progress=False)
    same = mmsnn.convert(ann, T)
    mmsnn.calibrate(same, [x], 'signed-functions', max_spikes=4, max_rate=2, bias=False, progress=False)
    for name, neuron in snn.neurons.items():
        assert torch.equal(neuron.threshold, same.neurons[name].threshold)
    for value, other in zip(leaves(snn(x)), leaves(same(x)), strict=True):
        assert distance(value, other) < .01  # a half that one has at the start and the other adds may round apart


def test_what_was_emitted_and_what_is_left_are_what_arrived():
    rule = RateFunction(max_spikes=30, max_rate=8, activation=nn.Tanh())
    currents, h = torch.randn(20, 50, 6, dtype=torch.float64), torch.full((), .125, dtype=torch.float64)
    zero = torch.zeros(50, 6, dtype=torch.float64)
    spikes, _, (total, number) = advance(rule, currents, zero, rule.start(zero, 20), h, 20)
    assert torch.equal(sum(spikes), number * h)
    torch.testing.assert_close(total, currents.sum(0))
    left = 20 * torch.tanh(total / 20) - sum(spikes)
    assert left.abs().max() <= .0625 + 1e-9 and any((spike < 0).any() for spike in spikes)
    few, *_ = advance(RateFunction(3, 2, activation=nn.Tanh()), currents, zero, rule.start(zero, 20), h, 20)
    assert max(spike.abs().max() for spike in few) == 3 * .125
    # A current that is steady is met exactly, in the end, by the closed form.
    steady = torch.linspace(-1, 1, 300, dtype=torch.float64).view(50, 6)
    spikes, *_ = advance(rule, [steady] * 20, zero, rule.start(zero, 20), h, 20)
    torch.testing.assert_close(sum(spikes) / 20, rule.rate(steady, h, 20, 0.))


@pytest.mark.parametrize('options', [
    dict(compile=True), dict(dtype='bfloat16'), dict(dtype='int8'), dict(chunk_steps=1), dict(chunk_steps=3)], ids=str)
def test_every_path_alike(options):
    ann, x = Net(nn.SiLU()).eval(), torch.randn(8, 3, 12, 12)
    snn = calibrated(ann, x, compile=False)
    if options.get('dtype') == 'int8':  # it rounds the weights before it calibrates
        other = calibrated(ann, x, **options)
    else:
        other = mmsnn.convert(ann, T, coding='differential', **options)
        other.load_state_dict(snn.state_dict())
    assert distance(other(x), snn(x)) < (.02 if 'dtype' in options else 1e-3)
    with mmsnn.CostCounter(other) as counter:
        other(x)
    spikes = counter.cost.spikes
    with mmsnn.CostCounter(snn) as counter:
        snn(x)
    assert sum(spikes.values()) == pytest.approx(sum(counter.cost.spikes.values()), rel=.05)


def test_stopped_early_it_gives_the_mean_so_far():
    ann, x = Net(nn.SiLU()).eval(), torch.randn(8, 3, 12, 12)
    snn = calibrated(ann, x)
    found = [distance(output, ann(x)) for output in snn.anytime([1, 4, 8], x).values()]
    assert found[0] > found[1] > found[2]
    with pytest.raises(RuntimeError, match=r'calibrated for time_steps=8, but the network has time_steps=4'):
        mmsnn.convert(ann, 4, coding='differential').load_state_dict(snn.state_dict())


def test_as_onnx(tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    from mmsnn.export.checking import run_onnx
    from mmsnn.export.formats import export
    ann, x = Net(nn.PReLU(8)).eval(), torch.randn(4, 3, 12, 12)
    snn = calibrated(ann, x, 4)
    export(snn, x[:1], tmp_path / 'net.onnx', 'onnx')
    value, = run_onnx(tmp_path / 'net.onnx', x)
    assert distance(value, snn(x)) < 1e-3


@pytest.mark.parametrize('options, message', [
    (dict(threshold='current'), "threshold='current' has no effect"), (dict(max_spikes=None), 'must be a number'),
    (dict(signed=True), 'signed=True has no effect'), (dict(potential='channel'), "potential='channel' has no effect"),
    (dict(levels=4), '3, 5, 7 ... levels'), (dict(sizes=3), 'sizes=3 has no effect')])
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline('signed-functions', **options)


def test_what_has_no_mean_over_time_is_refused_by_name():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = F.relu(self.first(x))
            return self.second(torch.where(y > y.mean(), y, 0.))

    ann, x = Gated().eval(), torch.randn(2, 3, 12, 12)
    snn = mmsnn.convert(ann, 32, coding='differential')
    mmsnn.calibrate(snn, [x], 'differential', progress=False)
    assert distance(snn(x), ann(x)) < .1
    with pytest.raises(ValueError, match='gt gives torch.bool, which has no mean over time'):
        calibrated(ann, x)(x)


def test_levels():
    assert make_pipeline('signed-functions', levels=13).rule(T).values == 13


class Extremes(nn.Module):
    """Channels weighted by what is largest along them, as convolutional block attention modules have it."""

    def __init__(self, largest):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.mix, self.largest = nn.Conv2d(2, 1, 3, padding=1), largest

    def forward(self, x):
        y = F.silu(self.first(x))
        weight = torch.sigmoid(self.mix(torch.cat([y.mean(1, keepdim=True), self.largest(y)], 1)))
        return self.last(y * weight)


@pytest.mark.parametrize('largest', [
    lambda y: torch.max(y, 1, keepdim=True)[0], lambda y: y.max(dim=1, keepdim=True).values,
    lambda y: y.min(1)[0].unsqueeze(1)], ids=['max', 'values', 'min'])
def test_the_largest_value_along_a_dimension(largest):
    ann, x = Extremes(largest).eval(), torch.randn(4, 3, 8, 8)
    snn = calibrated(ann, x, 32)
    assert distance(snn.network(x), ann(x)) < 1e-5 and distance(snn(x), ann(x)) < .03


def test_several_values_at_once_are_refused_by_name():
    snn = calibrated(Extremes(lambda y: y.topk(2, 1)[0][:, 1:]).eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match='topk gives no single tensor'):
        snn(torch.randn(2, 3, 8, 8))
