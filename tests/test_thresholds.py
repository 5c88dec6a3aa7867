import pytest
import torch
from torch import nn

import mmsnn
from mmsnn.neurons.rates import clip_floor, clip_round
from mmsnn.neurons.thresholds import BINS, RULES, ActivationHistogram, choose_threshold, mmse_threshold, squared_error


def histogram_of(*batches):
    histogram = ActivationHistogram(batches[0].shape[1])
    for batch in batches:
        histogram.update(batch)
    return histogram


def test_histogram_counts_by_hand():
    histogram = histogram_of(torch.tensor([[0., .25, .999, 1.5]]).T.reshape(4, 1))
    assert histogram.exponent.item() == 1 and histogram.maximum.item() == 1.5
    assert histogram.counts[0].nonzero().flatten().tolist() == [0, BINS // 8, int(.999 * BINS / 2), BINS * 3 // 4]


def test_histogram_does_not_depend_on_the_order_of_batches():
    batches = [torch.rand(2, 3, 5, 5) * scale for scale in (.01, 30., 1., 4.)]
    one, other = histogram_of(*batches), histogram_of(*reversed(batches))
    assert torch.equal(one.counts, other.counts) and torch.equal(one.exponent, other.exponent)
    assert one.counts.sum() == 4 * 2 * 3 * 25


@pytest.mark.parametrize('rounding, rate', [('round', clip_round), ('floor', clip_floor)])
@pytest.mark.parametrize('time_steps', [1, 4, 32])
def test_squared_error_equals_the_plain_sum(rounding, rate, time_steps):
    histogram = histogram_of(torch.randn(64, 4, 3, 3).relu())
    threshold = histogram.maximum * torch.tensor([1., .7, .33, .1])
    plain = (histogram.counts * (histogram.centers - rate(histogram.centers, threshold[:, None], time_steps)) ** 2)
    torch.testing.assert_close(squared_error(histogram, threshold, time_steps, rounding), plain.sum(1))


def test_mmse_finds_the_threshold_that_a_search_over_the_samples_finds():
    x = torch.randn(4096, 3).abs() ** 2
    found = mmse_threshold(histogram_of(x), 8)
    for channel in range(3):
        sample = x[:, channel].double()
        grid = sample.max() * torch.arange(1, 101) / 100
        errors = torch.stack([((sample - clip_round(sample, h, 8)) ** 2).sum() for h in grid])
        at_found = ((sample - clip_round(sample, found[channel], 8)) ** 2).sum()
        assert at_found <= errors.min() * 1.001


def test_a_perfectly_quantised_activation_is_found():
    x = torch.tensor([0., 1., 2., 3., 4.]).repeat(10)[:, None]
    histogram = histogram_of(x)
    assert squared_error(histogram, torch.tensor([4.], dtype=torch.float64), 4, 'round') < 1e-3


def test_percentile_ignores_the_outlier_and_max_does_not():
    x = torch.linspace(0, 1, 100_000)[:, None].clone()
    x[-1] = 50.
    assert choose_threshold(histogram_of(x), 'max', 8).item() == 50
    assert choose_threshold(histogram_of(x), 'percentile', 8).item() == pytest.approx(1., abs=64 / BINS)


def test_layer_wise_is_the_threshold_of_all_channels_together():
    x = torch.rand(256, 2) * torch.tensor([1., 8.])
    threshold = choose_threshold(histogram_of(x), 'mmse', 8, channel_wise=False)
    together = choose_threshold(histogram_of(x.reshape(-1, 1)), 'mmse', 8)
    assert torch.equal(threshold, together)


@pytest.mark.parametrize('rule', ['max', 'percentile', 'mmse'])
@pytest.mark.parametrize('channel_wise', [True, False])
def test_dead_channels_get_positive_finite_thresholds(rule, channel_wise):
    some = torch.rand(16, 3, 4, 4)
    some[:, 1] = 0
    for x in (some, torch.zeros(16, 3, 4, 4)):
        threshold = choose_threshold(histogram_of(x), rule, 8, channel_wise)
        assert (threshold > 0).all() and torch.isfinite(threshold).all()


def test_tiny_activations_are_resolved():
    x = torch.rand(1000, 1) * 1e-6
    assert 5e-7 < choose_threshold(histogram_of(torch.zeros(1, 1), x), 'mmse', 16).item() <= 1e-6


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match='NaN or infinite'):
        histogram_of(torch.tensor([[1.], [bad]]))


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'max', 'percentile', 'mmse'"):
        choose_threshold(histogram_of(torch.rand(4, 1)), 'median', 8)


@pytest.fixture
def rule(monkeypatch):
    """Registers a threshold rule for one test."""
    return lambda function: monkeypatch.setitem(RULES, 'own', function)


def test_a_registered_rule_is_used_with_its_levels_and_rounding(rule):
    seen = []

    def half(histogram, time_steps, rounding):
        seen.append((time_steps, rounding))
        return histogram.maximum / 2

    rule(half)
    snn = mmsnn.convert(nn.Sequential(nn.Identity(), nn.ReLU()), time_steps=4)
    batch = torch.tensor([[1., 3.], [2., 0.]])
    mmsnn.calibrate(snn, [batch], 'signed', threshold='own', rounding='floor', progress=False)
    assert seen == [(8, 'floor')]  # r T levels with r = 2
    neuron, = snn.neurons.values()
    assert neuron.threshold.flatten().tolist() == [.5, .75]  # half the maximum at the rate of two spikes a step
    mmsnn.calibrate(snn, [batch], 'none', threshold='own', channel_wise=False, progress=False)
    assert neuron.threshold.flatten().tolist() == [1.5]


def test_state_of_a_registered_rule_needs_the_rule(rule, monkeypatch):
    rule(lambda histogram, time_steps, rounding: histogram.maximum)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    snn = mmsnn.convert(net, time_steps=4)
    mmsnn.calibrate(snn, [torch.randn(8, 2)], 'none', threshold='own', progress=False)
    mmsnn.convert(net, time_steps=4).load_state_dict(snn.state_dict())
    monkeypatch.delitem(RULES, 'own')
    with pytest.raises(RuntimeError, match="threshold must be one of .* not 'own'"):
        mmsnn.convert(net, time_steps=4).load_state_dict(snn.state_dict())


@pytest.mark.parametrize('returned', [torch.tensor(1.), torch.full((2,), torch.nan)], ids=['scalar', 'nan'])
def test_a_rule_that_returns_nonsense_is_named(rule, returned):
    rule(lambda histogram, time_steps, rounding: returned)
    with pytest.raises(ValueError, match="rule 'own' must return one finite number for each of 2 channels"):
        choose_threshold(histogram_of(torch.rand(4, 2)), 'own', 8)


@pytest.mark.parametrize('pipeline, options', [
    ('light', {}), ('signed', {}), ('light', dict(bias_per_step=True)), ('signed', dict(potential='position')),
    ('rmp', dict(channel_wise=True)), ('none', dict(threshold='balanced')),
    ('advanced', dict(iterations=4, learning_rate=.01))], ids=str)
def test_channels_of_sequences_are_those_of_convolutions(pipeline, options):
    """A linear layer on (N, L, C) is a convolution with one tap on (N, C, L): thresholds are per channel, not token."""
    linear = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    convolution = nn.Sequential(*(nn.Conv1d(each.in_features, each.out_features, 1, dtype=torch.float64)
                                  if isinstance(each, nn.Linear) else nn.ReLU() for each in linear))
    for ours, theirs in zip(convolution.parameters(), linear.parameters()):
        ours.data = theirs.data.view_as(ours)
    x = torch.randn(16, 5, 6, dtype=torch.float64)
    snns = [mmsnn.convert(net, 4) for net in (linear, convolution)]
    for snn, each in zip(snns, (x, x.transpose(1, 2))):
        mmsnn.calibrate(snn, [each], pipeline, progress=False, **options)
    for ours, theirs in zip(*(snn.neurons.values() for snn in snns)):
        assert ours.threshold.shape == (8,)
        torch.testing.assert_close(ours.threshold, theirs.threshold)
    for length in (5, 3) if options.get('potential') != 'position' else (5,):
        expected = snns[1](x[:, :length].transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(snns[0](x[:, :length]), expected)


def test_sequences_of_several_lengths_have_no_potential_per_position():
    snn = mmsnn.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 4)
    with pytest.raises(ValueError, match=r"potential='position' needs images of one size, these have 2: \[\(5, 3\), "):
        mmsnn.calibrate(snn, [torch.rand(2, 5, 3), torch.rand(2, 7, 3)], 'signed', potential='position')
