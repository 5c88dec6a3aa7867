"""Theorem 4.1 on random networks and data, its three kinds of errors, and how differential coding comes to rest."""
import copy

import pytest
import torch
from torch import nn

import mmsnn
from mmsnn.analysis.theory import error_sources
from mmsnn.neurons.model import per_channel

from networks import Functional, Residual, randomise_norms


def chain(*widths):
    """Linear layers and ReLUs; the last layer is linear."""
    layers = []
    for inputs, outputs in zip(widths, widths[1:]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def spiking(ann, x, time_steps, pipeline='none', **options):
    snn = mmsnn.convert(ann, time_steps)
    mmsnn.calibrate(snn, [x], pipeline, progress=False, **options)
    return snn


PIPELINES = [('none', {}), ('none', dict(shift=None)), ('maxact', {}), ('light', {}), ('signed', {})]


@pytest.mark.parametrize('pipeline, options', PIPELINES, ids=str)
@pytest.mark.parametrize('time_steps', [1, 4, 32])
@pytest.mark.parametrize('network', [lambda: chain(6, 8, 8, 8, 3), Residual, Functional],
                         ids=['chain', 'Residual', 'Functional'])
def test_error_is_within_the_bound(network, time_steps, pipeline, options):
    for seed in range(5):
        torch.manual_seed(seed)
        ann = randomise_norms(network()).eval()
        x = torch.randn(4, 6) if isinstance(ann, nn.Sequential) else torch.randn(2, 3, 8, 8)
        report = error_sources(spiking(ann, x, time_steps, pipeline, **options), x)
        assert 0 < report.error <= report.bound


def test_reported_error_is_that_of_the_network():
    ann, x = randomise_norms(Residual()).eval(), torch.randn(2, 3, 8, 8)
    snn = spiking(ann, x, 4)
    with torch.no_grad():
        expected = ((ann(x) - snn(x)).square().sum() / ann(x).square().sum()).item()
    report = error_sources(snn, x)
    assert report.error == pytest.approx(expected, rel=1e-3)
    assert [layer.name for layer in report] == list(snn.neurons)
    assert str(report).count('\n') == len(report) + 1


def slopes_of_the_ann(ann, x):
    """For one input of a chain: the outputs of its ReLUs, and the Jacobian of the output with respect to each."""
    activations, jacobians = [], []
    for index, layer in enumerate(ann):
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            activations.append(x)
            jacobians.append(torch.autograd.functional.jacobian(ann[index + 1:], x))
    return activations, jacobians


def published_bound(snn, ann, x):
    """``(error, bound)`` of Eq. 15 as it is written, for a chain without bias corrections and one input (C,).

    The Hessians are those of the ANN at its own activations [Eq. 29], ``H = J.T @ J`` with J from autograd.
    """
    with torch.no_grad():
        rates, s = [], x
        for layer in ann:
            if isinstance(layer, nn.ReLU):
                neuron = list(snn.neurons.values())[len(rates)]
                rates.append((s.relu(), neuron.rate(s[None])[0]))
                s = rates[-1][1]
            else:
                s = layer(s)
        error = (ann(x) - s).square().sum()
    _, jacobians = slopes_of_the_ann(ann, x)
    bound = sum(2 ** (len(rates) - index) * (jacobian @ (activation - rate)).square().sum()
                for index, (jacobian, (activation, rate)) in enumerate(zip(jacobians, rates)))
    return error.item(), bound.item()


@pytest.mark.parametrize('time_steps', [4, 64])
def test_published_form_holds_for_most_random_data(time_steps):
    held = total = 0
    for seed in range(10):
        torch.manual_seed(seed)
        ann, x = chain(6, 8, 8, 8, 3), torch.randn(10, 6)
        snn = spiking(ann, x, time_steps)
        for row in x:
            error, bound = published_bound(snn, ann, row)
            held, total = held + (error <= bound * (1 + 1e-4) + 1e-9), total + 1
    assert held / total > .95


def test_published_form_does_not_hold_where_an_error_wakes_a_silent_neuron():
    """x = 0.9 becomes the rate 1: the ANN's second neuron gets 0.9 - 0.95 < 0 and is silent, the SNN's gets 0.05.

    The derivative of the second ReLU, and with it the Hessian of the first layer, is zero at the ANN's activations;
    the second layer's own error is zero as well, as 0.05 is one of its levels. Yet the outputs differ.
    """
    ann = chain(1, 1, 1, 1)
    with torch.no_grad():
        for layer, (weight, bias) in zip(ann[::2], [(1, 0), (1, -.95), (1, 0)]):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    x = torch.tensor([[.9]])
    snn = spiking(ann, x, 1)
    first, second = snn.neurons.values()
    first.threshold, second.threshold = torch.tensor([1.]), torch.tensor([.05])
    for neuron in (first, second):
        neuron.bias, neuron.initial_potential = torch.zeros(1), neuron.threshold / 2
    error, bound = published_bound(snn, ann, x[0])
    assert error == pytest.approx(.05 ** 2, rel=1e-3) and bound == pytest.approx(0, abs=1e-9)
    # With the slopes between the two networks' activations it does.
    report = error_sources(snn, x)
    assert report.bound >= report.error > 0


def test_clipping_rounding_and_timing_are_told_apart():
    """One neuron with threshold 1 and T = 4, starting at 1/2."""
    ann = chain(1, 1, 1)
    with torch.no_grad():
        for layer in ann[::2]:
            layer.weight.fill_(1)
            layer.bias.zero_()
    snn = spiking(ann, torch.ones(1, 1), 4)
    neuron, = snn.neurons.values()
    neuron.threshold, neuron.bias, neuron.initial_potential = torch.ones(1), torch.zeros(1), torch.tensor([.5])
    for current, local, clipping, rounding in ((1.5, .5, .5, 0), (.3, .05, 0, .05), (.75, 0, 0, 0), (3., 2., 2., 0)):
        layer, = error_sources(snn, torch.tensor([[current]]))
        for found, expected in zip(layer[1:5], (local, clipping, rounding, 0)):
            assert found == pytest.approx((expected / current) ** 2, rel=1e-5, abs=1e-9)
        assert layer.output == pytest.approx(layer.local)


def test_errors_of_timing_are_only_where_currents_vary():
    ann, x = randomise_norms(Residual()).eval(), torch.randn(2, 3, 8, 8)
    first, second, third = error_sources(spiking(ann, x, 8), x)
    assert first.timing < 1e-9 < second.timing and third.timing > 1e-9
    unbounded = error_sources(spiking(ann, x, 8, signed=True, max_spikes=None), x)
    # Nothing but sums that meet a threshold up to rounding.
    assert all(layer.timing < .1 * layer.rounding for layer in unbounded)


def test_longer_simulations_have_smaller_errors_of_rounding_and_timing():
    ann, x = randomise_norms(Residual()).eval(), torch.randn(2, 3, 8, 8)
    short, long = (error_sources(spiking(ann, x, time_steps, threshold='max'), x) for time_steps in (8, 128))
    for a, b in zip(short, long):
        assert b.clipping <= 1e-2 * a.local
        assert b.rounding < a.rounding / 64 and b.timing <= a.timing / 16 + 1e-9


def test_what_cannot_be_analysed_is_refused():
    ann, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match='no thresholds yet'):
        error_sources(mmsnn.convert(ann, 4), x)
    with pytest.raises(ValueError, match="'advanced' has calibrated the weights"):
        error_sources(spiking(ann, x, 4, 'advanced', iterations=1), x)


def settled_bound(snn, like):
    """How far outputs can be from the ANN's when each layer is within its dead zone; see docs/theory.md."""
    bounds = copy.deepcopy(snn.network)
    for module in bounds.modules():
        for name in ('weight', 'bias', 'running_mean'):
            value = getattr(module, name, None)
            if not isinstance(module, mmsnn.IFNeuron) and value is not None:
                value.data = value.data.abs() if name == 'weight' else torch.zeros_like(value)
    for neuron in [module for module in bounds.modules() if isinstance(module, mmsnn.IFNeuron)]:
        neuron.register_forward_hook(lambda neuron, inputs, _output: inputs[0] + per_channel(
            neuron.bias.abs() + neuron.rule.dead_zone * neuron.threshold, inputs[0]))
    with torch.no_grad():
        return bounds(torch.zeros_like(like))


@pytest.mark.parametrize('options', [dict(sizes=1), dict(sizes=4), dict(sizes=4, dead_zone=.8),
                                     dict(sizes=3, uniform=True)], ids=str)
def test_differential_coding_comes_to_rest_within_the_bound(options):
    for seed in range(4):
        torch.manual_seed(seed)
        ann, x = chain(6, 8, 8, 8, 3).eval(), torch.randn(4, 6)
        snn = spiking(ann, x, 60, 'differential', **options)
        at_rest, before = (snn.anytime([steps], x)[steps] for steps in (60, 40))
        assert torch.equal(at_rest, before), 'nobody fires any more'
        with torch.no_grad():
            error, bound = (at_rest - ann(x)).abs(), settled_bound(snn, x)
        assert (error <= bound + 1e-5).all() and error.max() > 0
        if options.get('dead_zone', .5) == .5:  # otherwise where a neuron rests depends on how it came there
            torch.testing.assert_close(at_rest, snn.quantised(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('options', [{}, dict(shrinking=2, settling_steps=3)], ids=['', 'sizes that shrink'])
def test_differential_coding_comes_three_times_nearer_with_each_step(options):
    """What a neuron has still to send, under a steady current that one step can reach."""
    rule, h = mmsnn.neurons.pipelines.make_pipeline('differential', **options).rule(8), torch.tensor([.1])
    wanted = torch.linspace(-1.5, 1.5, 3001) * rule.highest * h
    state = rule.start(torch.zeros_like(wanted), 8)
    left = wanted.abs()
    for step in range(1, 6):
        now = rule.at(step - 1, 8)
        _, state = now.step(wanted, torch.zeros(()), state, h, 8)
        limit = (wanted.abs() / 3 ** step).clamp(min=rule.dead_zone * now.scale * float(h))
        left = (wanted - state[0]).abs()
        assert (left <= limit + 1e-6).all()
    assert left.max() <= rule.dead_zone * h + 1e-6


def test_errors_of_neurons_that_send_changes_are_those_of_sums():
    ann, x = randomise_norms(Residual()).eval(), torch.randn(2, 3, 8, 8)
    snn = mmsnn.convert(ann, 8, coding='differential')
    mmsnn.calibrate(snn, [x], 'differential', progress=False)
    report = error_sources(snn, x)
    with torch.no_grad():
        expected = ((ann(x) - snn(x)).square().sum() / ann(x).square().sum()).item()
    assert report.error == pytest.approx(expected, rel=1e-3)
    assert all(layer.timing < .01 and layer.local < .01 for layer in report)


def test_errors_of_features_in_the_last_dimension():
    ann = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3), nn.GELU(), nn.Linear(3, 2))
    x = torch.randn(2, 4, 5)
    snn = mmsnn.convert(ann, 8, coding='differential')
    mmsnn.calibrate(snn, [x], 'differential', progress=False)
    report = error_sources(snn, x)
    assert all(layer.local < .01 for layer in report)
