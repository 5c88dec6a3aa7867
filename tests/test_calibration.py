import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmsnn
from mmsnn.calibration.corrections import measure
from mmsnn.calibration.procedure import observe
from mmsnn.calibration.store import Store
from mmsnn.calibration.walk import Sweep, blocks_of
from mmsnn.calibration.weights import descend, tuned_values, weighted_modules
from mmsnn.neurons.pipelines import make_pipeline

from networks import Residual, randomise_norms, three_layers

T = 8
QUICK = dict(iterations=50, learning_rate=1e-2)


def network():
    return randomise_norms(Residual()).eval()


def batches(count=3, size=16):
    return [torch.randn(2, 3, size, size) for _ in range(count)]


def calibrated(ann, data, pipeline, **kwargs):
    snn = mmsnn.convert(ann, T)
    return snn, mmsnn.calibrate(snn, data, pipeline, progress=False, **kwargs)


def naive_rates(snn, x):
    """Firing rate of every neuron layer by simulating the whole network step by step, with plain module calls."""
    potentials, totals = {}, {}

    def step(name):
        def hook(neuron, inputs, _output):
            current = inputs[0]
            if name not in potentials:
                potentials[name], totals[name] = neuron.start(current), torch.zeros_like(current)
            (spikes,), potentials[name] = neuron.fire(current[None], potentials[name])
            totals[name] += spikes
            return spikes
        return hook

    handles = [neuron.register_forward_hook(step(name)) for name, neuron in snn.neurons.items()]
    for _ in range(snn.time_steps):
        snn.network(x)
    for handle in handles:
        handle.remove()
    return {name: total / snn.time_steps for name, total in totals.items()}


class Plain(nn.Module):
    """No max pooling, so that the naive loop above is right."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.a(x))
        return self.relu(self.c(self.relu(self.b(x)) + x[..., 1:-1, 1:-1]))


@pytest.mark.parametrize('pipeline', ['none', 'light', 'advanced'])
def test_simulation_equals_the_naive_loop(pipeline):
    snn, _ = calibrated(Plain(), batches(), pipeline, **(QUICK if pipeline == 'advanced' else {}))
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(snn(x), naive_rates(snn, x)['relu_2'])


def test_one_walk_gives_the_rates_of_whole_network_simulations():
    """The sweep's stored spikes and recomputed segments against simulating the network up to each layer."""
    data = batches()
    snn, _ = calibrated(Plain(), data, 'light')
    sweep = Sweep(snn, data, Store(2 ** 30))
    for layer in sweep:
        for index, batch in enumerate(data):
            layer.activation(index)
            rate, by_step = layer.rate(index, keep=True, each_step=True)
            torch.testing.assert_close(rate, naive_rates(snn, batch)[layer.name])
            torch.testing.assert_close(by_step.mean(0), rate.double().movedim(1, 0).flatten(1).sum(1))
    assert sweep.store.in_memory == 0, 'everything is dropped behind its last reader'


def test_bias_is_the_published_rule():
    """b += mean(ANN - rate), one layer after the other, each time from a simulation of the whole network."""
    data = batches(1)
    snn, _ = calibrated(Plain(), data, 'light')
    other, _ = calibrated(Plain().requires_grad_(False), data, 'none')
    other.network.load_state_dict({k: v for k, v in snn.network.state_dict().items() if 'neurons' not in k},
                                  strict=False)
    mmsnn.calibrate(other, data, 'none', progress=False)
    activations = {}
    handles = [neuron.register_forward_hook(lambda _m, _i, out, name=name: activations.__setitem__(name, out))
               for name, neuron in other.neurons.items()]
    other.network(data[0])
    for handle in handles:
        handle.remove()
    for name, neuron in other.neurons.items():
        error = activations[name] - naive_rates(other, data[0])[name]
        neuron.bias += error.mean((0, 2, 3))
    for name, neuron in snn.neurons.items():
        torch.testing.assert_close(neuron.bias, other.neurons[name].bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('granularity, shape', [('channel', (6,)), ('position', (6, 16, 16))])
def test_potential_is_t_times_the_mean_error(granularity, shape):
    data = batches(2, 32)
    snn, _ = calibrated(network(), data, 'advanced', weights=False, potential=granularity)
    neuron = snn.neurons['relu']  # the stem: its input does not depend on calibration
    assert neuron.initial_potential.shape == shape
    plain, _ = calibrated(network(), data, 'none')
    plain.load_state_dict(snn.state_dict())
    plain.neurons['relu'].initial_potential = torch.zeros(6)
    current = plain.plan.once(plain.bind(torch.cat(data)))[plain.neuron_nodes[0].args[0]]
    potential = plain.neurons['relu'].start(current)
    rate = plain.neurons['relu'].fire(current.expand(T, *current.shape), potential)[0].mean(0)
    error = (current.relu() - rate).mean((0, 2, 3) if granularity == 'channel' else 0)
    torch.testing.assert_close(neuron.initial_potential.squeeze(), T * error.squeeze())


@pytest.mark.parametrize('pipeline', ['light', 'advanced'])
def test_each_pipeline_lowers_the_error(pipeline):
    _, report = calibrated(network(), batches(4, 24), pipeline, **(QUICK if pipeline == 'advanced' else {}))
    assert sum(row.error_after for row in report) < sum(row.error_before for row in report)
    assert 'error after' in str(report) and str(report).count('\n') == len(report)


def test_weights_do_not_make_the_calibration_error_larger():
    data = batches(4, 24)
    ann = network()
    _, potential = calibrated(ann, data, 'advanced', weights=False)
    for learning_rate in (1e-2, 1e3):  # the second destroys the weights: they are put back
        _, weights = calibrated(ann, data, 'advanced', iterations=30, learning_rate=learning_rate)
        assert weights[0].error_after <= potential[0].error_after * (1 + 1e-6)
        assert all(row.error_after < 1 for row in weights)


class Branches(nn.Module):
    """A stem, a residual block with an identity and one with a projection, then a layer; two outputs."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in (
            (3, 4), (4, 4), (4, 4), (4, 6), (6, 6), (4, 6), (6, 4)))

    def forward(self, x):
        stem, a, b, c, d, shortcut, last = self.convs
        x = stem(x).relu()
        first = (b(a(x).relu()) + x).relu()
        second = (d(c(first).relu()) + shortcut(first)).relu()
        return first.mean((2, 3)), last(second).relu()  # an output behind the first block does not join the others


def test_blocks_end_where_everything_goes_through_one_layer():
    snn = mmsnn.convert(Branches(), T)
    assert [len(block) for block in blocks_of(snn)] == [1, 2, 2, 1]
    assert [node for block in blocks_of(snn) for node in block] == snn.neuron_nodes


def test_gradient_of_a_block_is_that_of_its_output():
    """One step of gradient descent on the residual block ``relu(b(relu(a(x))) + x)``, written out."""
    data = batches(1)
    snn, _ = calibrated(Branches(), data, 'signed')
    sweep = Sweep(snn, data, Store(2 ** 30), blockwise=True)
    steps = SimpleNamespace(update=lambda count=1: None)
    walk = iter(sweep)
    for _ in range(3):
        layer = next(walk)
        measure(layer, make_pipeline('signed'), steps, keep=True)
    _, inner, last = list(snn.neurons.values())[:3]
    rate = naive_rates(snn, data[0])['relu']
    a, b = snn.network.get_submodule('convs.1'), snn.network.get_submodule('convs.2')
    weights = [module.weight.detach().clone().requires_grad_() for module in (a, b)]
    hidden = inner.rate(F.conv2d(rate, weights[0], a.bias, padding=1))
    output = last.rate(F.conv2d(hidden, weights[1], b.bias, padding=1) + rate)
    loss = (layer.activation(0) - output).square().sum(1).mean()
    expected = torch.autograd.grad(loss, weights)
    owned = weighted_modules(layer.block.plan)
    assert owned == [a, b]
    descend(layer.block, tuned_values(layer.block, owned, make_pipeline('signed')),
            make_pipeline('signed', weights=True, iterations=1, learning_rate=1., momentum=0.), steps)
    for module, weight, gradient in zip((a, b), weights, expected):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(module.weight, weight - gradient)


def test_blocks_are_simulated_again_with_their_new_weights():
    data, ann, pipeline = batches(4), Branches(), 'signed'
    options = dict(iterations=100, learning_rate=.1, weights=True, blockwise=True, tune=('bias', 'threshold'))
    _, before = calibrated(ann, data, pipeline, weights=False)
    snn, after = calibrated(ann, data, pipeline, **options)
    assert after[0].error_after <= before[0].error_after and after != before
    rates = naive_rates(snn, torch.cat(data))
    sweep = Sweep(snn, [torch.cat(data)], Store(2 ** 30), blockwise=True)
    for layer in sweep:
        layer.activation(0)
        torch.testing.assert_close(layer.rate(0, keep=True)[0], rates[layer.name])
    assert sweep.store.in_memory == 0
    # Where blocks are single layers it is the paper's calibration.
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    reports = [calibrated(net, data, pipeline, **options | dict(blockwise=choice))[1] for choice in (False, True)]
    assert reports[0] == reports[1]


def test_weights_of_a_block_that_get_worse_are_put_back():
    data = batches(4)
    ann = Branches()
    potential, report = calibrated(ann, data, 'advanced', weights=False)
    kept, same = calibrated(ann, data, 'advanced', blockwise=True, iterations=5, learning_rate=1e6)
    for name, value in kept.state_dict().items():
        if name != '_settings':
            torch.testing.assert_close(value, potential.state_dict()[name])
    assert [row.error_after for row in same] == pytest.approx([row.error_after for row in report])


def test_ann_stream_does_not_see_calibrated_weights():
    data = batches()
    ann = network()
    snn, _ = calibrated(ann, data, 'advanced', **QUICK)
    assert not torch.equal(snn.network.conv2.weight, mmsnn.convert(ann, T).network.conv2.weight)
    with pytest.raises(ValueError, match='convert the ANN again'):
        mmsnn.calibrate(snn, data, 'light', progress=False)


def test_calibrating_again_starts_afresh():
    data, ann = batches(), network()
    once, _ = calibrated(ann, data, 'light')
    again, _ = calibrated(ann, data, 'light', shift='potential')
    mmsnn.calibrate(again, data, 'light', progress=False)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in once.state_dict().items())


@pytest.mark.parametrize('chunk_steps', [1, 3, 8, None])
@pytest.mark.parametrize('budget', [0, 2 ** 30])
def test_chunks_and_spilling_to_files_change_nothing(chunk_steps, budget, tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    data, ann = batches(), network()
    reference, _ = calibrated(ann, data, 'light')
    snn = mmsnn.convert(ann, T, chunk_steps=chunk_steps)
    mmsnn.calibrate(snn, data, 'light', memory_budget=budget, progress=False)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(snn.state_dict()[key], value)
    assert list(tmp_path.iterdir()) == []


def test_images_of_several_sizes():
    data = [torch.randn(1, 3, height, width) for height, width in ((16, 24), (20, 12), (32, 32))]
    ann = network()
    for pipeline in ('none', 'light', 'advanced'):
        snn, _ = calibrated(ann, data, pipeline, **(QUICK if pipeline == 'advanced' else {}))
        assert snn(torch.randn(2, 3, 40, 28)).shape == (2, 5)
    with pytest.raises(ValueError, match="use potential='channel'"):
        calibrated(ann, data, 'advanced', potential='position')


def test_state_holds_everything():
    ann, x = network(), torch.randn(2, 3, 16, 16)
    snn, _ = calibrated(ann, batches(), 'advanced', potential='position', **QUICK)
    fresh = mmsnn.convert(network(), T)
    fresh.load_state_dict(copy.deepcopy(snn.state_dict()))
    assert torch.equal(fresh(x), snn(x))
    assert fresh.settings == snn.settings and fresh.settings['pipeline'] == 'advanced'
    with pytest.raises(RuntimeError, match='time_steps=8'):
        mmsnn.convert(ann, 16).load_state_dict(snn.state_dict())


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda snn: pickle.loads(pickle.dumps(snn))],
                         ids=['deepcopy', 'pickle'])
def test_copies_are_independent(duplicate):
    snn, _ = calibrated(network(), batches(), 'light')
    x = torch.randn(2, 3, 16, 16)
    expected = snn(x)  # and makes its plan, which a copy must not share
    other = duplicate(snn)
    assert torch.equal(other(x), expected)
    mmsnn.calibrate(other, batches(), 'none', progress=False, threshold='max')
    assert torch.equal(snn(x), expected) and not torch.equal(other(x), expected)


def test_batch_size_and_chunks_give_the_same_outputs():
    ann = network()
    snn, _ = calibrated(ann, batches(), 'light')
    x = torch.randn(4, 3, 16, 16)
    reference = snn(x)
    torch.testing.assert_close(torch.cat([snn(image[None]) for image in x]), reference)
    for chunk_steps in (1, 3, 8):
        snn.chunk_steps = chunk_steps
        torch.testing.assert_close(snn(x), reference)


def test_potential_readout_is_the_rectified_mean_current():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            first = torch.relu(self.a(x))
            return first, torch.relu(self.b(first))

    ann, x = Backbone(), torch.randn(2, 3, 12, 12)
    for shift in ('bias', 'potential'):
        snn = mmsnn.convert(ann, T, readout='potential')
        mmsnn.calibrate(snn, [x], 'none', progress=False, shift=shift)
        first, second = snn(x)
        torch.testing.assert_close(first, ann(x)[0], rtol=1e-5, atol=1e-6)  # constant current: no error at all
        snn.readout, snn._plan = 'spikes', None
        torch.testing.assert_close(second, torch.relu(ann.b(snn(x)[0])), rtol=1e-5, atol=1e-5)


def test_uncalibrated_network_says_what_to_do():
    with pytest.raises(RuntimeError, match='mmsnn.calibrate'):
        mmsnn.convert(network(), T)(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize('data, message', [
    ([], 'no calibration batch'),
    ([torch.full((1, 3, 8, 8), float('nan'))], 'batch 0 holds NaN'),
    ([torch.zeros(1, 3, 8, 8, dtype=torch.uint8)], 'floating-point tensor'),
    (['image.png'], 'not str'),
], ids=['empty', 'nan', 'uint8', 'str'])
def test_unusable_batches_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        calibrated(network(), data, 'light')


@pytest.mark.parametrize('pipeline, options, message', [
    ('heavy', {}, "'none', 'light', 'advanced'"),
    ('light', dict(treshold='max'), 'treshold'),
    ('light', dict(threshold='median'), "'mmse'"),
    ('light', dict(iterations=0), 'positive'),
])
def test_unknown_options_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        calibrated(network(), batches(), pipeline, **options)


def test_histograms_of_another_network_are_refused():
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    histograms = observe(mmsnn.convert(other, T), batches())
    with pytest.raises(ValueError, match='histograms are those of other layers.*relu'):
        calibrated(network(), batches(), 'none', histograms=histograms)


def test_options_may_be_numbers_of_numpy():
    snn, _ = calibrated(network(), batches(), 'advanced', iterations=np.int64(2), learning_rate=np.float32(.5))
    assert snn.settings['iterations'] == 2 and snn.settings['learning_rate'] == .5


def test_failure_leaves_nothing_that_looks_calibrated(monkeypatch):
    snn, _ = calibrated(network(), batches(), 'light')
    monkeypatch.setattr('mmsnn.calibration.procedure.calibrate_layer', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mmsnn.calibrate(snn, batches(), 'light', progress=False)
    assert snn.settings is None


def test_interrupted_weights_calibration_can_be_repeated(monkeypatch):
    data, ann = batches(), network()
    expected, _ = calibrated(ann, data, 'advanced', **QUICK)
    snn = mmsnn.convert(ann, T)
    calibrate_layer = mmsnn.calibration.procedure.calibrate_layer

    def interrupt(layer, *args):
        if layer.name == 'relu_2':
            raise KeyboardInterrupt
        return calibrate_layer(layer, *args)

    with monkeypatch.context() as patch:
        patch.setattr('mmsnn.calibration.procedure.calibrate_layer', interrupt)
        with pytest.raises(KeyboardInterrupt):
            mmsnn.calibrate(snn, data, 'advanced', progress=False, **QUICK)
    assert torch.equal(snn.network.conv2.weight, mmsnn.convert(ann, T).network.conv2.weight)
    mmsnn.calibrate(snn, data, 'advanced', progress=False, **QUICK)
    assert all(torch.equal(value, snn.state_dict()[key]) for key, value in expected.state_dict().items())


def test_overflowing_network_names_the_layer():
    ann = network()
    nn.init.constant_(ann.conv2.weight, 1e38)
    with pytest.raises(ValueError, match='layer relu_1: activations are NaN or infinite'):
        observe(mmsnn.convert(ann, T), batches())


@pytest.mark.parametrize('max_rate', [1, 2])
@pytest.mark.parametrize('pipeline', ['none', 'light', 'advanced'])
def test_unbounded_signed_bursts_equal_the_quantised_ann(pipeline, max_rate):
    data = batches()
    snn, _ = calibrated(network(), data, pipeline, signed=True, max_spikes=None, max_rate=max_rate, shift='potential',
                        iterations=5, learning_rate=1e-3)
    # Currents add up in another order: single counts may differ by one where a sum meets a threshold exactly.
    torch.testing.assert_close(snn(data[0]), snn.quantised(data[0]), rtol=.02, atol=.02)
    again = mmsnn.convert(network(), T)
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again(data[0]), snn(data[0]))


def test_a_higher_rate_has_the_levels_of_more_time_steps():
    data, net = batches(), network()
    fast, _ = calibrated(net, data, 'none', max_spikes=2, max_rate=2)
    slow = mmsnn.convert(net, 2 * T)
    mmsnn.calibrate(slow, data, 'none', progress=False)
    for name, neuron in fast.neurons.items():
        torch.testing.assert_close(neuron.threshold, slow.neurons[name].threshold / 2)
        current = 100 * neuron.threshold.expand(3, -1)  # far above what a rate of one spike a step can follow
        torch.testing.assert_close(neuron.rate(current)[0], 2 * neuron.threshold)
    for wrong in (dict(max_rate=2), dict(max_rate=0), dict(max_rate=4, max_spikes=3)):
        with pytest.raises(ValueError, match='max_rate must be from 1 to max_spikes'):
            calibrated(net, data, 'none', **wrong)


def test_default_is_the_usual_pipeline():
    data, net = batches(), network()
    snn = mmsnn.convert(net, T)
    mmsnn.calibrate(snn, data, progress=False)
    expected, _ = calibrated(net, data, 'differential')
    assert torch.equal(snn(data[0]), expected(data[0])) and snn.settings == expected.settings
    assert mmsnn.CalibrationHook().named(T) == 'differential' and mmsnn.CalibrationHook('light').named(T) == 'light'
    assert mmsnn.CalibrationHook(levels=5).named(T) == 'bursts'
    assert mmsnn.CalibrationHook().named(1, 'differential') == 'differential', 'what the network was converted for'
    changes = mmsnn.convert(net, 1, coding='differential')
    mmsnn.calibrate(changes, data, progress=False)
    assert changes.settings['pipeline'] == 'differential'


def test_running_means_of_one_simulation():
    data = batches()
    snn, _ = calibrated(network(), data, 'light', signed=True)
    outputs = snn.anytime([2, 5, T], data[0])
    assert list(outputs) == [2, 5, T] and torch.equal(outputs[T], snn(data[0]))
    # The sum of T outputs is that of the first 5 and of the others, which a delayed readout averages.
    late = mmsnn.convert(network(), T, delay=5)
    late.load_state_dict(snn.state_dict())
    torch.testing.assert_close(5 * outputs[5] + (T - 5) * late(data[0]), T * outputs[T])
    for wrong in ([0], [T + 1], []):
        with pytest.raises(ValueError, match=f'from 1 to {T}'):
            snn.anytime(wrong, data[0])
    with pytest.raises(ValueError, match='delay must be'):
        mmsnn.convert(network(), T, delay=T)


def test_one_bias_for_each_step_moves_the_mean_of_each_step():
    data, net = batches(), network()
    snn, _ = calibrated(net, data, 'light', bias_per_step=True)
    first = snn.neurons['relu']
    assert first.bias.shape == (T, 6)
    # What calibration added to each step of the first layer is what was missing there.
    plain, _ = calibrated(net, data, 'none')
    layer = next(iter(Sweep(plain, data, Store(2 ** 30))))
    missing, count = 0, 0
    for index in range(len(data)):
        activation = layer.activation(index)
        _, by_step = layer.rate(index, each_step=True)
        missing = missing + activation.double().movedim(1, 0).flatten(1).sum(1) - by_step
        count += activation.numel() // activation.shape[1]
    torch.testing.assert_close(first.bias, plain.neurons['relu'].bias + (missing / count).float())
    # Chunks and a saved state pick the same biases.
    again = mmsnn.convert(net, T, chunk_steps=3)
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again(data[0]), snn(data[0]))


def test_gradient_descent_may_move_bias_and_threshold_too():
    data, net = batches(), network()
    quick = dict(iterations=30, learning_rate=1e-2)
    plain, _ = calibrated(net, data, 'advanced', **quick)
    tuned, report = calibrated(net, data, 'advanced', tune=('bias', 'threshold'), **quick)
    for neuron in tuned.neurons.values():
        assert (neuron.threshold > 0).all() and not neuron.threshold.requires_grad
    assert any(not torch.equal(neuron.threshold, plain.neurons[name].threshold)
               for name, neuron in tuned.neurons.items())
    _, untuned = calibrated(net, data, 'potential')
    assert sum(row.error_after for row in report) < sum(row.error_after for row in untuned)
    again = mmsnn.convert(net, T)
    again.load_state_dict(tuned.state_dict())
    assert torch.equal(again(data[0]), tuned(data[0]))
    with pytest.raises(ValueError, match="tune may hold 'bias' and 'threshold'"):
        calibrated(net, data, 'advanced', tune=('weights',))


@pytest.mark.parametrize('time_steps, levels, expected', [
    (1, None, 'bursts'), (2, 9, 'bursts'), (3, None, 'differential'), (8, 13, 'differential'), (8, 5, 'bursts'),
    (8, 3, 'signed'), (8, 16, 'bursts'), (8, 2, 'potential')])
def test_levels_are_the_one_choice_that_is_needed(time_steps, levels, expected):
    snn = mmsnn.convert(three_layers(), time_steps)
    mmsnn.calibrate(snn, [torch.rand(4, 1, 1, 1)], progress=False, **({} if levels is None else dict(levels=levels)))
    assert snn.settings['pipeline'] == expected
    assert {neuron.rule.values for neuron in snn.neurons.values()} == {levels or 13}


def test_levels_that_cannot_be():
    snn = mmsnn.convert(three_layers(), 4)
    for pipeline, levels, message in [('signed', 8, 'spikes of either sign have 3, 5, 7'), ('bursts', 1, 'at least 2'),
                                      ('differential', 2, 'spikes of either sign'), ('bursts', 2.5, 'of type int')]:
        with pytest.raises(ValueError, match=message):
            mmsnn.calibrate(snn, [torch.rand(4, 1, 1, 1)], pipeline, levels=levels, progress=False)
    with pytest.raises(ValueError, match='levels=9 decides max_spikes: give one or the other'):
        mmsnn.calibrate(snn, [torch.rand(4, 1, 1, 1)], 'bursts', levels=9, max_spikes=4, progress=False)


def test_observing_is_in_full_precision_whatever_is_around():
    snn, data = mmsnn.convert(network(), 1), batches(1)
    expected = mmsnn.observe(snn, data[0])  # one batch alone, as for calibrate
    with torch.autocast('cpu', torch.bfloat16):
        found = mmsnn.observe(snn, data)
    assert all(torch.equal(found[name].counts, histogram.counts) for name, histogram in expected.items())


def test_observing_holds_no_activations_where_parameters_require_gradients():
    snn = mmsnn.convert(Residual().eval(), 1).requires_grad_(True)
    histograms = mmsnn.observe(snn, [torch.randn(2, 3, 16, 16) for _ in range(2)])
    assert not any(each.maximum.requires_grad or each.counts.requires_grad for each in histograms.values())


class Tied(nn.Module):
    """Two layers of the same weights, whose first layer's activation is an output too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x):
        y = F.relu(self.a(x))
        return y, F.relu(self.b(y))


def test_weights_that_two_layers_share_are_calibrated_with_the_first():
    torch.manual_seed(0)
    ann, x = Tied().eval(), torch.randn(4, 3, 8, 8)
    before = ann.a.weight.detach().clone()
    snn = mmsnn.convert(ann, 2)
    report = mmsnn.calibrate(snn, [x], 'advanced', channel_wise=False, iterations=50,
                             learning_rate=1e-4, progress=False)
    assert not torch.equal(snn.network.a.weight, before)
    wanted, found = ann(x)[0], snn(x)[0]
    error = (wanted - found).square().sum() / wanted.square().sum()
    assert error.item() == pytest.approx(report[0].error_after, rel=1e-4)
