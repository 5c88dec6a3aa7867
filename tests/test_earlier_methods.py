"""The methods that the paper compares with, on cases worked out by hand."""
import pytest
import torch
from torch import nn

import mmsnn
from mmsnn import integrate_and_fire
from mmsnn.calibration.balancing import balanced_thresholds
from mmsnn.neurons.thresholds import ActivationHistogram


def two_layers():
    """Two neurons of current 0.75 x and 0.5 x, and one that receives the sum of their spikes."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False), nn.ReLU())
    net[0].weight.data = torch.tensor([.75, .5]).view(2, 1, 1, 1)
    net[2].weight.data.fill_(1.)
    return net


def calibrated(pipeline, time_steps=6, **options):
    snn = mmsnn.convert(two_layers(), time_steps)
    mmsnn.calibrate(snn, [torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), .5)], pipeline, progress=False, **options)
    return snn


def test_hard_reset_forgets_what_exceeds_the_threshold():
    currents = torch.full((6, 1), .5)
    soft, hard = torch.zeros(1), torch.zeros(1)
    # u: .5, 1 (fires, .25 left), .75 (fires, 0 left), and again
    spikes = integrate_and_fire(currents, soft, torch.tensor(.75))
    assert spikes.flatten().tolist() == [0, .75, .75, 0, .75, .75]
    # u: .5, 1 (fires, 0 left), and again
    spikes = integrate_and_fire(currents, hard, torch.tensor(.75), reset='zero')
    assert spikes.flatten().tolist() == [0, .75, 0, .75, 0, .75]
    assert soft.item() == hard.item() == 0


def test_maxact_takes_the_largest_activation_of_the_layer():
    first, second = calibrated('maxact').neurons.values()
    assert first.threshold.tolist() == [.75] and second.threshold.tolist() == [1.25]
    assert first.bias.tolist() == first.initial_potential.tolist() == [0.]


def test_percentile_ignores_outliers():
    histogram = ActivationHistogram(1)
    values = torch.linspace(0, 1, 20001)[1:]
    histogram.update(torch.cat([values, torch.tensor([100.])]).view(1, 1, -1))
    threshold = mmsnn.neurons.thresholds.choose_threshold(histogram, 'percentile', 8, channel_wise=False)
    # 99.99 % of 20,001 values are 19,999: up to one bin of 128 / 2048 above the 19,999th, 0.99995
    assert .99995 <= threshold.item() <= .99995 + 128 / 2048


@pytest.mark.parametrize('pipeline, rate', [('rmp', .5), ('tsc', .5), ('spike-norm', .375)])
def test_threshold_balancing_takes_the_largest_current_of_any_step(pipeline, rate):
    snn = calibrated(pipeline)
    first, second = snn.neurons.values()
    # Both neurons fire at step 2, .75 each: more than the ANN's largest activation, 1.25.
    assert first.threshold.tolist() == [.75] and second.threshold.tolist() == [1.5]
    spikes, _ = first.fire(torch.tensor([.75, .5]).view(1, 2, 1, 1).expand(6, 1, 2, 1, 1),
                           first.start(torch.zeros(1, 2, 1, 1)))
    # Soft reset: 4 of 6 steps, hard reset: 3 of 6 (see above), of .75 each.
    assert spikes.mean(0).flatten().tolist() == [.75, rate]


def test_threshold_balancing_per_channel():
    first, _ = calibrated('rmp', channel_wise=True).neurons.values()
    assert first.threshold.tolist() == [.75, .5]


def test_local_threshold_balancing_by_hand():
    snn = mmsnn.convert(two_layers(), 4)
    batch = [torch.ones(1, 1, 1, 1)]
    # z = .75, .5. h = 1.5 and 1 after one batch: nothing exceeds them, the second layer receives 1.25: h = 2.5.
    thresholds = balanced_thresholds(snn, batch, count=1)
    assert [threshold.tolist() for threshold in thresholds.values()] == [[1.5, 1.], [2.5]]
    # Two images of z = .75, .5 and 3, 2: h = 3.75, 2.5, which clip nothing; second layer 1.25 and 5: h = 6.25. Then
    # nothing exceeds h any more. Per layer: z = .75, .5, 3, 2: h = 3.125, then 6.25.
    batch = [torch.tensor([1., 4.]).view(2, 1, 1, 1)]
    for count in (1, 3):
        thresholds = balanced_thresholds(snn, batch, count=count)
        assert [threshold.tolist() for threshold in thresholds.values()] == [[3.75, 2.5], [6.25]]
    thresholds = balanced_thresholds(snn, batch, channel_wise=False, count=1)
    assert [threshold.tolist() for threshold in thresholds.values()] == [[3.125], [6.25]]
    # A rare, large value is clipped, and what the layer behind receives is clipped too: 7 zeros and one z = 6, 4.
    batch = [torch.tensor([8.] + [0.] * 7).view(8, 1, 1, 1)]
    thresholds = balanced_thresholds(snn, batch, count=1)
    assert [threshold.tolist() for threshold in thresholds.values()] == [[1.5, 1.], [.625]]
    mmsnn.calibrate(snn, batch, 'light', threshold='balanced', progress=False)
    assert snn.settings['threshold'] == 'balanced'


def test_reset_survives_saving_and_copying():
    snn = calibrated('spike-norm')
    again = mmsnn.convert(two_layers(), 6)
    again.load_state_dict(snn.state_dict())
    x = torch.tensor([.3, .7, 1.]).view(3, 1, 1, 1)
    assert torch.equal(again(x), snn(x))
    mmsnn.calibrate(again, [x], 'none', progress=False)
    assert {neuron.rule.reset for neuron in again.neurons.values()} == {'subtract'}
    with pytest.raises(ValueError, match='reset must be one of'):
        mmsnn.calibrate(again, [x], 'none', reset='half')


def test_shared_histograms_change_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    histograms = mmsnn.observe(mmsnn.convert(net, 4), batches)
    for pipeline, time_steps in (('maxact', 4), ('percentile', 8), ('light', 8), ('none', 4)):
        shared, alone = mmsnn.convert(net, time_steps), mmsnn.convert(net, time_steps)
        mmsnn.calibrate(shared, batches, pipeline, histograms=histograms, progress=False)
        mmsnn.calibrate(alone, batches, pipeline, progress=False)
        for name, value in alone.state_dict().items():
            assert torch.equal(shared.state_dict()[name], value)
