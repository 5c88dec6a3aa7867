"""Convolutions of bytes: the same as the plain loop with the same rounded weights, bit by bit."""
import shutil

import pytest
import torch
from test_engine import T, assert_same, exact, inputs, load

import mmsnn
from mmsnn.neurons.pipelines import make_pipeline
from mmsnn.simulation import integers
from mmsnn.simulation.integers import code_of, integer_layers, round_network, round_weights

from networks import Residual, leaves, randomise_norms

PIPELINES = ['light', 'signed', 'differential']
OPTIONS = dict(differential=dict(sizes=4))  # T steps of the larger sizes fill more than a byte


def pair(pipeline='signed', network=Residual, time_steps=T, **fast):
    """A network with weights of 8 bits whose sums are exact in float32, and the same on integers."""
    ann = randomise_norms(network()).eval()
    plain = mmsnn.convert(ann, time_steps)
    mmsnn.calibrate(plain, [inputs()], pipeline, progress=False, **OPTIONS.get(pipeline, {}))
    exact(plain)
    for neuron in plain.neurons.values():
        neuron.threshold.copy_(2. ** neuron.threshold.log2().round())
    for node, source in integer_layers(plain.plan).items():
        conv, threshold = plain.plan.modules[node], plain.plan.modules[source].threshold
        folded = integers._of_inputs(conv.weight, threshold, conv.groups)
        driven = (conv.weight * folded).mul_(32).round_().clamp_(-127, 127)
        driven[:, 0, 0, 0] = 127  # the largest: the scale is a power of two
        conv.weight.copy_(driven / 32 / folded)
    other = mmsnn.convert(ann, time_steps, dtype='int8', **fast)
    load(other, plain)
    return plain, other


@pytest.mark.parametrize('pipeline', PIPELINES)
def test_integers_equal_the_plain_loop_for_every_neuron_and_chunk(pipeline):
    plain, fast = pair(pipeline)
    assert len(integer_layers(plain.plan)) == 2
    expected = plain(inputs())
    for fast.chunk_steps in (None, 1, 2, 4, T):
        assert_same(fast(inputs()), expected)
    assert any(value.abs().max() > 0 for value in leaves(expected))


class Convolutions(torch.nn.Sequential):
    """Nothing but convolutions and neurons: what is computed once is exact, all else are sums of integers."""

    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(),
                         torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(),
                         torch.nn.Conv2d(8, 8, 3, stride=2, groups=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
        with torch.no_grad():
            for value in self[0].parameters():
                value.copy_((value * 64).round() / 64)


@pytest.mark.parametrize('pipeline', PIPELINES)
def test_the_same_bits_whatever_the_batch_the_chunk_and_the_threads(pipeline):
    fast = mmsnn.convert(Convolutions().eval(), T, dtype='int8')
    mmsnn.calibrate(fast, [inputs()], pipeline, progress=False, **OPTIONS.get(pipeline, {}))
    assert len(integer_layers(fast.plan)) == 3
    x, threads = inputs(4), torch.get_num_threads()
    expected = fast(x)
    try:
        for fast.chunk_steps, number, parts in ((1, 1, 4), (2, 2, 2), (4, 2, 1), (3, 1, 2)):
            torch.set_num_threads(number)
            assert torch.equal(torch.cat([fast(part) for part in x.chunk(parts)]), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(shutil.which('c++') is None and shutil.which('g++') is None, reason='needs a C++ compiler')
def test_compiled_integers_equal_the_plain_loop():
    plain, fast = pair('differential', Convolutions, time_steps=2, compile=True)
    torch._dynamo.reset()
    assert_same(fast(inputs()), plain(inputs()))


def test_spikes_are_counted_alike():
    for pipeline in PIPELINES:
        plain, fast = pair(pipeline)
        costs = []
        for snn in (plain, fast):
            with mmsnn.CostCounter(snn) as counter:
                snn(inputs())
            costs.append(counter.cost)
        assert costs[0] == costs[1]


def test_weights_are_rounded_by_output_channel_with_thresholds_folded_in():
    weight = torch.tensor([[[[127.]], [[-63.]]], [[[.5]], [[0.]]], [[[0.]], [[0.]]]])
    found, scale = round_weights(weight, torch.tensor([1., 2.]))
    assert found.flatten(1).tolist() == [[127, -126], [127, 0], [0, 0]]
    torch.testing.assert_close(scale, torch.tensor([1., .5 / 127, 1.]))


@pytest.mark.parametrize('groups', [1, 3])
def test_rounding_what_is_rounded_changes_nothing(groups):
    weight, threshold = torch.randn(6, 6 // groups, 3, 3), torch.rand(6) + .1
    found, scale = round_weights(weight, threshold, groups)
    inputs_of = threshold.view(groups, 1, -1).expand(groups, 6 // groups, -1).reshape(6, -1, 1, 1)
    again, _ = round_weights(found * scale.view(-1, 1, 1, 1) / inputs_of, threshold, groups)
    assert torch.equal(found, again)
    error = (found * scale.view(-1, 1, 1, 1) - weight * inputs_of).abs()
    assert (error <= .5001 * scale.view(-1, 1, 1, 1)).all()


def test_a_network_rounded_before_calibration_computes_the_same_on_integers():
    plain = mmsnn.convert(randomise_norms(Residual()).eval(), T)
    mmsnn.calibrate(plain, [inputs()], 'signed', progress=False)
    before = plain.network.conv2.weight.clone()
    round_network(plain.plan)
    fast = mmsnn.convert(randomise_norms(Residual()).eval(), T, dtype='int8')
    load(fast, plain)
    assert not torch.equal(before, plain.network.conv2.weight)
    for value, expected in zip(leaves(fast(inputs())), leaves(plain(inputs())), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_what_a_byte_does_not_hold_is_refused_by_name():
    snn = mmsnn.convert(randomise_norms(Residual()).eval(), 64, dtype='int8')
    mmsnn.calibrate(snn, [inputs()], 'differential', progress=False)
    with pytest.raises(ValueError, match=r"dtype='int8'.*Differential.* at neurons\..* in 64 steps"):
        snn(inputs())


@pytest.mark.parametrize('changes, time_steps, zero_point', [
    (dict(pipeline='light'), 4, 0), (dict(pipeline='signed'), 4, 128), (dict(pipeline='differential', sizes=6), 3, 128),
    (dict(pipeline='differential', sizes=7), 1, 128), (dict(pipeline='differential', sizes=7), 2, None)])
def test_which_neurons_fit_into_a_byte(changes, time_steps, zero_point):
    neuron = mmsnn.IFNeuron()
    neuron.rule = make_pipeline(changes.pop('pipeline'), **changes).rule(time_steps)
    neuron.time_steps = time_steps
    found = code_of(neuron)
    assert zero_point is None and found is None or found.zero_point == zero_point


def test_without_such_a_processor_the_same_is_computed_in_float32(monkeypatch, caplog):
    plain, fast = pair('signed')
    monkeypatch.setattr(integers, '_integer_convolution', None)
    assert_same(fast(inputs()), plain(inputs()))
    assert "dtype='int8' needs a processor" in caplog.text
