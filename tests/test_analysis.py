"""Errors, thresholds and memory by layer, by hand and against computations that share nothing with analysis.py."""
import math

import pytest
import torch
from torch import nn

import mmsnn
from mmsnn.analysis.errors import box, channel_errors, parameter_bytes, threshold_shares
from mmsnn.neurons.pipelines import PIPELINES

from networks import Residual, randomise_norms, simulate, three_layers


def test_errors_by_hand():
    """A neuron with threshold 1 fires at rate 1, 1/2 and 1/2 for the currents 1, .5 and .625 at T = 4."""
    snn = mmsnn.convert(three_layers(), time_steps=4)
    images = torch.tensor([1., .5, .625]).view(3, 1, 1, 1)
    mmsnn.calibrate(snn, [images], 'maxact', progress=False)
    first, second = channel_errors(snn, mmsnn.convert(three_layers(), 4).network, images.split(2)).values()
    assert first.tolist() == [.125 ** 2 / (1 + .25 + .625 ** 2)] * 2
    # Its activations are twice the input, the threshold 2; spikes arrive in every step, or in the second and fourth.
    assert second.tolist() == [.25 ** 2 / (4 + 1 + 1.25 ** 2)] * 3


def by_hand(snn, ann, batches):
    """Spikes summed as they are simulated, activations by forward hooks."""
    errors, norms = {}, {}
    for batch in batches:
        activations = {}
        handles = [neuron.register_forward_hook(
            lambda _m, _i, out, name=name: activations.__setitem__(name, out.clone()))
            for name, neuron in ann.neurons.items()]
        ann.network(batch)
        for handle in handles:
            handle.remove()
        spikes = {name: layer['spikes'].sum(0) for name, layer in simulate(snn, batch)[1].items()}
        for name, activation in activations.items():
            other = (0, 2, 3)
            error = (activation - spikes[name] / snn.time_steps) ** 2
            errors[name] = errors.get(name, 0) + error.double().sum(other)
            norms[name] = norms.get(name, 0) + (activation ** 2).double().sum(other)
    return {name: errors[name] / norms[name] for name in errors}


@pytest.mark.parametrize('pipeline', ['none', 'advanced', 'signed'])
def test_errors_of_a_residual_network(pipeline):
    net = randomise_norms(Residual()).eval()
    ann, snn = mmsnn.convert(net, 6), mmsnn.convert(net, 6)
    batches = [torch.randn(2, 3, size, 12) for size in (12, 16)]
    report = mmsnn.calibrate(snn, batches, pipeline, progress=False, iterations=20, learning_rate=1e-2)
    found, expected = channel_errors(snn, ann.network, batches), by_hand(snn, ann, batches)
    assert found.keys() == expected.keys() == snn.neurons.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)
    if pipeline != 'none':  # over all channels together it is what the calibration reports
        for row in report:
            norm = sum(value.square().sum((0, 2, 3)) for value in _activations(ann, batches, row.name))
            together = (found[row.name] * norm).nansum() / norm.sum()
            assert row.error_after == pytest.approx(float(together), rel=1e-4)


def test_errors_of_neurons_that_send_changes():
    """What they have sent is the activation, not T times it."""
    net = randomise_norms(Residual()).eval()
    ann, snn = (mmsnn.convert(net, 6, coding='differential') for _ in range(2))
    batches = [torch.randn(2, 3, 12, 12)]
    report = mmsnn.calibrate(snn, batches, 'differential', sizes=8, progress=False)
    errors = channel_errors(snn, ann.network, batches)
    for row in report:
        norm = sum(value.square().sum((0, 2, 3)) for value in _activations(ann, batches, row.name))
        together = (errors[row.name] * norm).nansum() / norm.sum()
        assert 0 < together < 1e-3 and float(together) == pytest.approx(row.error_after, rel=.5)


def test_channels_may_be_the_last_dimension():
    net, tokens = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3), nn.GELU(), nn.Linear(3, 2)), 11
    ann, snn = (mmsnn.convert(net, 4, coding='differential') for _ in range(2))
    x = torch.randn(2, tokens, 5)
    mmsnn.calibrate(snn, [x], 'differential', progress=False)
    errors = channel_errors(snn, ann.network, [x])
    assert {name: error.shape for name, error in errors.items()} == {
        name: neuron.threshold.shape for name, neuron in snn.neurons.items()}


def _activations(ann, batches, name):
    found = []
    handle = ann.neurons[name].register_forward_hook(lambda _m, _i, out: found.append(out))
    for batch in batches:
        ann.network(batch)
    handle.remove()
    return found


def test_a_channel_that_is_never_active_has_no_error():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    net[0].weight.data[:, 0, 0, 0] = torch.tensor([1., -1.])
    snn, images = mmsnn.convert(net, 4), torch.rand(4, 1, 1, 1)
    mmsnn.calibrate(snn, [images], 'none', progress=False)
    (errors,) = channel_errors(snn, mmsnn.convert(net, 4).network, [images]).values()
    assert not errors[0].isnan() and errors[1].isnan() and box(errors)['count'] == 1


def test_boxes():
    values = torch.cat([torch.arange(101.), torch.tensor([math.nan])])
    assert box(values) == pytest.approx(dict(q05=5, q25=25, median=50, q75=75, q95=95, mean=50, count=101))
    assert box(torch.tensor([math.nan])) == dict(q05=None, q25=None, median=None, q75=None, q95=None, mean=None,
                                                 count=0)


def test_thresholds_against_time_steps():
    net, images = randomise_norms(Residual()).eval(), torch.randn(4, 3, 12, 12)
    histograms = mmsnn.observe(mmsnn.convert(net, 1), [images])
    steps = [2, 8, 32]
    shares = threshold_shares(histograms, PIPELINES['none'], steps)
    for column, time_steps in enumerate(steps):
        snn = mmsnn.convert(net, time_steps)
        mmsnn.calibrate(snn, [images], 'none', progress=False)
        for name, neuron in snn.neurons.items():
            largest = _activations(snn, [images], name)[0].amax((0, 2, 3))
            assert shares[name][column] == pytest.approx(float((neuron.threshold / largest)[largest > 0].mean()))
    assert shares.keys() == histograms.keys()
    nothing_is_clipped = threshold_shares(histograms, PIPELINES['maxact'], steps)
    assert all(share == pytest.approx([1.] * 3) for share in nothing_is_clipped.values())
    # Bursts of r spikes have the levels of r times as many steps.
    assert threshold_shares(histograms, PIPELINES['signed'], [4]) == threshold_shares(histograms, PIPELINES['none'],
                                                                                      [8])


def test_bytes_by_kind():
    """Residual has 3 layers of 6 channels, on 6 x 6 positions; the weights before them are 6x3x3x3, 6x6x3x3, 6x3x3."""
    net, images = randomise_norms(Residual()).eval(), [torch.randn(2, 3, 12, 12)]
    ann = mmsnn.convert(net, 4).network

    def measured(pipeline, **options):
        snn = mmsnn.convert(net, 4)
        mmsnn.calibrate(snn, images, pipeline, progress=False, iterations=30, learning_rate=1e-3, **options)
        return parameter_bytes(snn, ann)

    none = measured('none')
    weights = 6 * 27 + 6 * 54 + 6 * 9
    biases, classifier = 18, 6 * 5 + 5
    assert none == dict(thresholds=4 * 18, bias=4 * 18, potential=4 * 18, weights=0,
                        ann=4 * (weights + biases + classifier))
    assert measured('light', bias_per_step=True)['bias'] == 4 * 4 * 18
    assert measured('potential', potential='position')['potential'] == 4 * 18 * 36
    assert measured('none', channel_wise=False)['thresholds'] == 4 * 3
    changed = measured('advanced')['weights']
    assert 0 < changed <= 4 * weights and changed % (4 * 54) == 0
