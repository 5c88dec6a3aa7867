"""Properties of conversion and simulation, on random networks.

What is bit-equal and what cannot be: sums of floating-point numbers depend on their order, and the order in which a
convolution adds depends on the size of its batch. A membrane potential that misses a threshold by one rounding fires a
step later. So equality of every bit is asked of networks whose numbers are multiples of 1/8 (``exact``), in which no
sum rounds, and of all others only where the same operations run on the same shapes.

``MMSNN_EXAMPLES=500`` tries as many random examples of each property, other ones each time.
"""
import copy
import io
import math
import os
from collections import OrderedDict
from datetime import timedelta

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip('hypothesis')

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmsnn
from mmsnn.neurons.model import per_channel

from networks import Residual, randomise_norms, simulate

EXAMPLES = int(os.environ.get('MMSNN_EXAMPLES', 0))
profile = settings(max_examples=EXAMPLES or 25, derandomize=not EXAMPLES, deadline=timedelta(seconds=10), database=None,
                   suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
SIZE, CHANNELS = 8, (2, 4, 6)

# --- random networks ---------------------------------------------------------------------------------------------


class Spelt(nn.Module):
    """An operation in one of its spellings."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(x)


class Around(nn.Module):
    """A block beside its own input: added, added in place, or concatenated."""

    def __init__(self, block, join):
        super().__init__()
        self.block, self.join = block, join

    def forward(self, x):
        out = self.block(x)
        if self.join == 'cat':
            return torch.cat([x, out], 1)
        if self.join == 'iadd':
            out += x
            return out
        return torch.add(out, x) if self.join == 'add' else x + out


class Twice(nn.Module):
    """One module at two call sites."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x))


class Conv(nn.Conv2d):
    """A convolution that is traced into: its padding is an operation of its own."""

    def forward(self, x):
        (height, width), options = self.padding, dict(stride=self.stride, dilation=self.dilation, groups=self.groups)
        x = F.pad(input=x, pad=(width, width, height, height))
        return F.conv2d(x, weight=self.weight, bias=self.bias, **options)


class Branching(nn.Module):
    """A forward() that torch.fx cannot trace."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Square(nn.Module):
    def forward(self, x):
        return x * x


RELUS = {
    'module': nn.ReLU, 'in place': lambda: nn.ReLU(inplace=True), 'relu6': nn.ReLU6, 'F.relu': lambda: Spelt(F.relu),
    'F.relu_': lambda: Spelt(F.relu_), 'F.relu6': lambda: Spelt(F.relu6), 'torch.relu': lambda: Spelt(torch.relu),
    '.relu()': lambda: Spelt(lambda x: x.relu()), '.relu_()': lambda: Spelt(lambda x: x.relu_()),
    'F.relu inplace': lambda: Spelt(lambda x: F.relu(x, inplace=True)),
    'by name': lambda: Spelt(lambda x: F.relu(input=x)),
    'clamp': lambda: Spelt(lambda x: x.clamp(min=0)), 'clamp, ceiling': lambda: Spelt(lambda x: torch.clamp(x, 0, 6)),
    'maximum': lambda: Spelt(lambda x: torch.maximum(x, torch.zeros_like(x))), 'Hardtanh': lambda: nn.Hardtanh(0, 4),
    'threshold': lambda: Spelt(lambda x: F.threshold(x, value=0, threshold=0))}
POOLS = {
    'AvgPool2d': lambda: nn.AvgPool2d(2), 'F.avg_pool2d': lambda: Spelt(lambda x: F.avg_pool2d(x, 2)),
    'MaxPool2d': lambda: nn.MaxPool2d(2), 'MaxPool2d, overlapping': lambda: nn.MaxPool2d(3, 2, 1),
    'F.max_pool2d': lambda: Spelt(lambda x: F.max_pool2d(x, 2)),
    'F.max_pool2d by name': lambda: Spelt(lambda x: F.max_pool2d(kernel_size=2, input=x))}
INEXACT_POOLS = {'AvgPool2d, overlapping': lambda: nn.AvgPool2d(3, 2, 1)}
REFUSED = {
    'Sigmoid': nn.Sigmoid, 'GELU': nn.GELU, 'GroupNorm': None, 'LPPool2d': lambda: nn.LPPool2d(2, 1),
    'tanh': lambda: Spelt(torch.tanh), 'softmax': lambda: Spelt(lambda x: F.softmax(x, 1)),
    'abs': lambda: Spelt(lambda x: x.abs()), 'mul': Square, 'Branching': Branching,
    'div': lambda: Spelt(lambda x: torch.div(x, .5, rounding_mode='floor')),
    'einsum': lambda: Spelt(lambda x: torch.einsum('nchw,nchw->nchw', x, x)),
    'multiply': lambda: Spelt(lambda x: torch.multiply(input=x, other=x))}


@st.composite
def networks(draw, exact=False, refused=False):
    """A random network for images (N, 3, 8, 8), and the name of what in it has no spiking counterpart, or None.

    Args:
        draw: of hypothesis.
        exact: only operations that do not round multiples of 1/8.
        refused: put one unsupported operation behind the first ReLU.
    """
    shared = RELUS[draw(st.sampled_from(['module', 'in place', 'relu6']))]()

    def relu():
        name = draw(st.sampled_from(['shared', *RELUS]))
        return shared if name == 'shared' else RELUS[name]()

    def conv(inputs, outputs=None, same=False, norm=True):
        """A convolution with or without normalisation; ``same`` keeps the size of the image."""
        outputs = outputs or draw(st.sampled_from(CHANNELS))
        kernel, dilation = draw(st.sampled_from([(1, 1), (3, 1), (3, 2)]))
        stride = 1 if same else draw(st.sampled_from([1, 1, 2]))
        padding = dilation * (kernel // 2) if same else draw(st.integers(0, 2))
        if height + 2 * padding <= dilation * (kernel - 1):  # nothing would be left of the image
            kernel, padding = 1, 0
        groups = draw(st.sampled_from([1, math.gcd(inputs, outputs)]))
        kind = draw(st.sampled_from([nn.Conv2d, Conv]))
        layer = kind(inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
        return [layer, nn.BatchNorm2d(outputs)] if norm and draw(st.booleans()) else [layer]

    def block(kind):
        if kind == 'conv':
            return conv(channels)
        if kind in ('residual', 'pre-activation'):
            first = [relu()] if kind == 'pre-activation' else []
            inner = [*first, *conv(channels, channels, same=True), relu(), *conv(channels, channels, same=True)]
            return [Around(nn.Sequential(*inner), draw(st.sampled_from(['add', 'iadd', '+'])))]
        if kind == 'dense':
            return [Around(nn.Sequential(relu(), *conv(channels, same=True)), 'cat')]
        if kind == 'twice':
            return [Twice(nn.Sequential(*conv(channels, channels, same=True, norm=not exact), relu()))]
        if kind == 'norm':
            return [nn.BatchNorm2d(channels, affine=draw(st.booleans()))]
        pools = POOLS if exact else POOLS | INEXACT_POOLS
        return [pools[draw(st.sampled_from(sorted(pools)))]()] if height > 1 else []

    torch.manual_seed(draw(st.integers(0, 2 ** 16)))
    kinds = ['conv', 'residual', 'pre-activation', 'dense', 'twice', 'pool'] + ['norm'] * (not exact)
    channels, height, layers = 3, SIZE, []
    count = draw(st.integers(2, 4))
    bad = draw(st.integers(0, count - 1)) if refused else None
    name = draw(st.sampled_from(sorted(REFUSED))) if refused else None
    for index in range(count):
        layers += block('conv' if index == 0 else draw(st.sampled_from(kinds)))
        if draw(st.booleans()):
            layers.append(relu())
        channels, height = probe(layers)
        if index == bad:  # two varying factors, or an operation of whatever kind
            layers += [relu(), nn.GroupNorm(1, channels) if name == 'GroupNorm' else REFUSED[name]()]
    layers += [*conv(channels, same=True), relu()]
    channels, height = probe(layers)
    pooled = not exact and draw(st.booleans())
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)] if pooled else [
        nn.Flatten(), nn.Linear(channels * height ** 2, 3)]
    return randomise_norms(nn.Sequential(*layers, *head)).eval(), name


def probe(layers):
    """Channels and height of what layers make of an image."""
    with torch.no_grad():
        return nn.Sequential(*layers).eval()(torch.zeros(1, 3, SIZE, SIZE)).shape[1:3]


def images(count=2, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


# --- what is observed --------------------------------------------------------------------------------------------

RULES = {
    'plain': dict(pipeline='none'),
    'starting at half': dict(pipeline='none', shift='potential'),
    'bursts': dict(pipeline='none', max_spikes=3),
    'as many as a step allows': dict(pipeline='none', max_spikes=3, max_rate=3),
    'signed': dict(pipeline='none', signed=True),
    'signed bursts': dict(pipeline='none', signed=True, max_spikes=4, max_rate=2, shift='potential'),
    'signed, unbounded': dict(pipeline='none', signed=True, max_spikes=None),
    'not clipped': dict(pipeline='none', signed=True, max_spikes=4, max_rate=2, clip=False, shift='potential'),
    'calibrated bias': dict(pipeline='light'),
    'default': dict(pipeline='signed'),
}
rules = st.sampled_from(sorted(RULES))


def calibrated(ann, time_steps, x, rule, **options):
    snn = mmsnn.convert(ann, time_steps)
    mmsnn.calibrate(snn, [x], progress=False, **RULES[rule] | options)
    return snn


def exact(ann, time_steps, rule):
    """A calibrated network and images of multiples of 1/8, small enough for float32 to add them up without rounding."""
    x = (images(4) * 2).round() / 2
    snn = mmsnn.convert(ann, time_steps)
    with torch.no_grad():
        for value in snn.network.parameters():
            value.copy_((value * 16).round() / 8)
        mmsnn.calibrate(snn, [x], progress=False, **RULES[rule])
        for neuron in snn.neurons.values():
            neuron.threshold = (neuron.threshold * 8).round().clamp(min=1) / 8
            neuron.bias, neuron.initial_potential = ((value * 8).round() / 8 for value in (
                neuron.bias, neuron.initial_potential))
    return snn, x


def assert_same(one, other):
    """Bit-equal outputs, and spikes of every layer."""
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, layer in one[1].items():
        assert torch.equal(layer['spikes'], other[1][name]['spikes']), name


# --- conversion --------------------------------------------------------------------------------------------------


@profile
@given(networks())
def test_every_network_converts_into_what_computes_the_same(drawn):
    ann, _ = drawn
    snn = mmsnn.convert(ann, time_steps=2)
    assert snn.neurons
    torch.testing.assert_close(snn.network(images()), ann(images()), rtol=1e-3, atol=1e-4)


STRUCTURES = {'list': lambda y, z: [y, {'z': z}], 'dict': lambda y, z: dict(y=y, z=(z, None)),
              'OrderedDict': lambda y, z: OrderedDict(z=z, y=[y]), 'tuple': lambda y, z: (y, z)}


class Structured(nn.Module):
    def __init__(self, network, structure):
        super().__init__()
        self.body, self.last, self.structure = network[:-1], network[-1], structure

    def forward(self, x):
        x = self.body(x)
        return self.structure(x, self.last(x))


@profile
@given(networks(), st.sampled_from(sorted(STRUCTURES)), st.sampled_from([torch.float32, torch.float64]))
def test_outputs_have_the_structure_and_precision_of_the_anns(drawn, structure, dtype):
    ann, x = Structured(drawn[0], STRUCTURES[structure]).to(dtype), images().to(dtype)
    snn, expected = calibrated(ann, 2, x, 'default'), ann(x)
    for output in (snn(x), snn.network(x)):
        (found, form), (right, wanted) = map(torch.utils._pytree.tree_flatten, (output, expected))
        assert form == wanted and type(output) is type(expected)
        assert all(a is b is None or (a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(found, right))


@profile
@given(networks(refused=True))
def test_whatever_has_no_spiking_counterpart_is_refused_by_name(drawn):
    ann, name = drawn
    with pytest.raises(mmsnn.ConversionError, match=name) as error:
        mmsnn.convert(ann, time_steps=2)
    assert str(error.value).count('\n  ') == 1, 'this one alone'


# --- many time steps ---------------------------------------------------------------------------------------------


def deviation_bound(snn, like):
    """How far sums of spikes can be from t times the activations of the clipped ANN; see docs/theory.md.

    With ``D`` such a bound for the current into a layer, that of its spikes is ``D + T |bias| + |v(0)| + h``; an affine
    operation passes bounds on with the absolute values of its weights, max pooling with their maximum.
    """
    bounds = copy.deepcopy(snn.network)
    for module in bounds.modules():
        for name in ('weight', 'bias', 'running_mean'):
            value = getattr(module, name, None)
            if isinstance(module, mmsnn.IFNeuron) or value is None:
                continue
            value.data = value.data.abs() if name == 'weight' else torch.zeros_like(value)
    for neuron in [module for module in bounds.modules() if isinstance(module, mmsnn.IFNeuron)]:
        neuron.register_forward_hook(lambda neuron, inputs, _output: inputs[0] + sum(
            per_channel(value, inputs[0]) for value in (
                snn.time_steps * neuron.bias.abs(), neuron.initial_potential.abs(), neuron.threshold)))
    with torch.no_grad():
        return bounds(torch.zeros_like(like))


def clipped(snn, x):
    """The ANN with activations clipped at what neurons can emit."""
    ann = copy.deepcopy(snn.network)
    for neuron in [module for module in ann.modules() if isinstance(module, mmsnn.IFNeuron)]:
        neuron.register_forward_hook(lambda neuron, _inputs, output: torch.minimum(
            output, neuron.rule.bound * per_channel(neuron.threshold, output)))
    with torch.no_grad():
        return ann(x)


@profile
@given(networks(), st.sampled_from([1, 3, 16, 64, 256]), rules)
def test_output_is_within_the_bound_of_order_1_over_t_of_the_clipped_ann(drawn, time_steps, rule):
    ann, x = drawn[0], images()
    # Signed neurons and bursts may run ahead of the mean rate where it is clipped: the bound holds without clipping.
    clips = {} if RULES[rule]['pipeline'] == 'none' and rule in ('plain', 'starting at half') else dict(threshold='max')
    snn = calibrated(ann, time_steps, x, rule, **clips)
    difference = (snn(x) - clipped(snn, x)).abs()
    bound = deviation_bound(snn, x) / time_steps
    rounding = 1e-4 * (1 + clipped(snn, x).abs())
    assert (difference <= bound + rounding).all(), (difference / bound).max()


@pytest.mark.parametrize('rule', ['plain', 'starting at half', 'signed bursts'])
def test_error_falls_as_1_over_t(rule):
    """T times the error, averaged over networks, has no trend: it stays within a factor of two from T = 8 to 512."""
    scaled = {8: 0., 64: 0., 512: 0.}
    for seed in range(6):
        torch.manual_seed(seed)
        ann, x = randomise_norms(Residual()).eval(), torch.randn(2, 3, SIZE, SIZE)
        for time_steps in scaled:
            snn = calibrated(ann, time_steps, x, rule, threshold='max')
            scaled[time_steps] += time_steps * (snn(x) - clipped(snn, x)).abs().mean().item()
    assert max(scaled.values()) < 2 * min(scaled.values())


# --- spikes and charge -------------------------------------------------------------------------------------------


@profile
@given(networks(), st.integers(1, 9), rules)
def test_spikes_are_whole_multiples_of_the_threshold_within_the_rule(drawn, time_steps, rule):
    snn = calibrated(drawn[0], time_steps, images(), rule)
    _, layers = simulate(snn, images())
    assert layers.keys() == snn.neurons.keys()
    for name, layer in layers.items():
        neuron = snn.neurons[name]
        threshold = per_channel(neuron.threshold, layer['first'])
        number = (layer['spikes'] / threshold).round()
        assert torch.equal(number * threshold, layer['spikes'])
        lowest, highest = number.aminmax()
        assert neuron.rule.lowest <= lowest and highest <= neuron.rule.max_spikes
        total = number.cumsum(0)
        assert total.min() >= 0 and total.max() <= neuron.rule.bound * time_steps


@profile
@given(networks(), st.integers(1, 9), rules)
def test_charge_is_conserved(drawn, time_steps, rule):
    """Currents and the initial potential are what was emitted and what is left, but for the rounding of each step."""
    snn = calibrated(drawn[0], time_steps, images(), rule)
    _, layers = simulate(snn, images())
    for name, layer in layers.items():
        received, emitted, largest = charge(snn.neurons[name], layer, time_steps)
        # Three additions a step, each of which rounds by at most half a unit in the last place.
        limit = 3 * time_steps * torch.finfo(torch.float32).eps * largest
        assert ((received - emitted).abs() <= limit).all()


@profile
@given(networks(exact=True), st.integers(1, 9), rules)
def test_charge_is_conserved_exactly_where_nothing_rounds(drawn, time_steps, rule):
    snn, x = exact(drawn[0], time_steps, rule)
    _, layers = simulate(snn, x)
    for name, layer in layers.items():
        received, emitted, _ = charge(snn.neurons[name], layer, time_steps)
        assert torch.equal(received, emitted)


def charge(neuron, layer, time_steps):
    """What neurons received in all, what they emitted and kept, and the largest of the numbers involved; float64."""
    currents, spikes, first, last = (layer[name].double() for name in ('currents', 'spikes', 'first', 'last'))
    received = first + currents.sum(0) + time_steps * per_channel(neuron.bias.double(), first)
    largest = first.abs() + currents.abs().sum(0) + spikes.abs().sum(0) + last.abs()
    return received, spikes.sum(0) + last, largest


# --- what must change nothing ------------------------------------------------------------------------------------


@profile
@given(networks(exact=True), st.integers(1, 9), rules, st.permutations(range(4)), st.integers(1, 3))
def test_images_do_not_see_each_other(drawn, time_steps, rule, order, cut):
    snn, x = exact(drawn[0], time_steps, rule)
    whole = simulate(snn, x)
    output, layers = simulate(snn, x[order])
    assert_same((whole[0][order], {name: dict(spikes=layer['spikes'][:, order]) for name, layer in whole[1].items()}),
                (output, layers))
    parts = [simulate(snn, part) for part in (x[:cut], x[cut:])]
    assert_same(whole, (torch.cat([part[0] for part in parts]), {
        name: dict(spikes=torch.cat([part[1][name]['spikes'] for part in parts], 1)) for name in whole[1]}))


@profile
@given(networks(exact=True), st.integers(1, 9), rules, st.integers(1, 9))
def test_grouping_of_time_steps_changes_nothing(drawn, time_steps, rule, chunk_steps):
    snn, x = exact(drawn[0], time_steps, rule)
    expected = simulate(snn, x)
    snn.chunk_steps = chunk_steps
    assert_same(simulate(snn, x), expected)


@profile
@given(networks(exact=True), st.permutations(range(4)), st.integers(1, 3), st.sampled_from(['mmse', 'max']))
def test_thresholds_do_not_depend_on_the_order_of_images(drawn, order, cut, threshold):
    snn, x = exact(drawn[0], 8, 'plain')
    mmsnn.calibrate(snn, [x], 'none', progress=False, threshold=threshold)
    expected = {name: neuron.threshold for name, neuron in snn.neurons.items()}
    mmsnn.calibrate(snn, x[order].split(cut), 'none', progress=False, threshold=threshold)
    for name, neuron in snn.neurons.items():
        assert torch.equal(neuron.threshold, expected[name])


@profile
@given(networks(), st.integers(1, 9), rules)
def test_a_saved_network_is_the_same_network(drawn, time_steps, rule):
    """Bit-equal for any numbers: the same operations run on the same shapes."""
    ann, x = drawn[0], images()
    snn, file = calibrated(ann, time_steps, x, rule), io.BytesIO()
    torch.save(snn.state_dict(), file)
    file.seek(0)
    again = mmsnn.convert(ann, time_steps)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert_same(simulate(again, x), simulate(snn, x))


@profile
@given(st.integers(0, 2 ** 16), st.integers(2, 12), st.data(), rules)
def test_neurons_saved_between_two_steps_go_on_as_if_nothing_had_happened(seed, time_steps, data, rule):
    """Bit-equal for any numbers: neurons compute each element and each step for itself."""
    generator = torch.Generator().manual_seed(seed)
    neuron = mmsnn.IFNeuron()
    pipeline = mmsnn.neurons.pipelines.make_pipeline(**{'name': RULES[rule]['pipeline'], **{
        key: value for key, value in RULES[rule].items() if key != 'pipeline'}})
    neuron.rule, neuron.time_steps = pipeline.rule(time_steps), time_steps
    neuron.threshold = torch.rand(3, generator=generator) + .1
    currents = torch.randn(time_steps, 2, 3, 5, generator=generator)
    expected, expected_state = neuron.fire(currents, neuron.start(currents[0]))
    cut = data.draw(st.integers(1, time_steps - 1))
    (first, state), file = neuron.fire(currents[:cut], neuron.start(currents[0])), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    second, state = neuron.fire(currents[cut:], torch.load(file, weights_only=True), cut)
    assert torch.equal(torch.cat([first, second]), expected)
    assert torch.equal(state[0], expected_state[0])
