"""Differential coding, against values by hand and a naive simulation that sends changes and adds them up."""
import copy

import pytest
import torch
from torch import nn

import mmsnn
from mmsnn.neurons.differential import Differential
from mmsnn.neurons.thresholds import ActivationHistogram
from mmsnn.simulation.plan import evaluate, is_neuron

from networks import Residual, Small, randomise_norms, simulate, three_layers

T = 8


class Plain(nn.Module):
    """A residual connection and a bias everywhere."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 3)
        self.relu, self.fc = nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x):
        x = self.relu(self.a(x))
        x = self.relu(self.c(self.relu(self.b(x)) + x))
        return self.fc(x.sum((2, 3)))


def exact(ann, x, **options):
    """Calibrated, with numbers of few bits: sums are the same in any order."""
    snn = mmsnn.convert(ann.eval(), T)
    mmsnn.calibrate(snn, [x], 'differential', progress=False, **options)
    with torch.no_grad():
        for value in snn.network.parameters():
            value.copy_((value * 32).round() / 32)
        for neuron in snn.neurons.values():
            neuron.threshold = (neuron.threshold * 32).round().clamp(min=1) / 32
            neuron.bias = (neuron.bias * 32).round() / 32
    return snn


def images(count=2):
    return (torch.randn(count, 3, 8, 8) * 8).round() / 8


@torch.no_grad()
def naive(snn, x, time_steps):
    """Changes travel: every operation passes on its linear part of what arrives, constants come at the first step.

    Returns the sum of the outputs after each step, and the number of events of each layer at each step.
    """
    total, received, sent, zeros, found = 0., {}, {}, {}, []
    for step in range(time_steps):
        env, events = {}, {}
        for node in snn.graph.nodes:
            if node.op == 'output':
                total = total + env[node.args[0]]
            elif node.op == 'placeholder':
                zeros[node] = torch.zeros_like(x)
                env[node] = x if step == 0 else torch.zeros_like(x)
            elif is_neuron(node):
                neuron = snn.network.get_submodule(node.target)
                h = neuron.threshold.view(-1, 1, 1)
                received[node] = received.get(node, neuron.bias.view(-1, 1, 1)) + env[node.args[0]]
                scale = neuron.rule.shrinking ** max(0, neuron.rule.settling_steps - 1 - step)
                e = (received[node].clamp(0, neuron.ceiling) - sent.get(node, 0.)) / (scale * h)
                sizes = torch.tensor([0., *(2. ** k for k in range(neuron.rule.sizes))])
                nearest = (e.abs()[..., None] - sizes).abs()
                # Half way between two sizes the larger one is sent, but nothing within the dead zone.
                index = sizes.numel() - 1 - nearest.flip(-1).argmin(-1)
                zone = neuron.rule.dead_zone * neuron.rule.narrowing ** max(0, min(snn.time_steps, 3) - 1 - step)
                index = torch.where(e.abs() <= zone, 0, index)
                env[node] = sizes[index] * e.sign() * scale * h
                sent[node] = sent.get(node, 0.) + env[node]
                events[node.name] = int((env[node] != 0).sum())
                zeros[node] = torch.zeros_like(env[node])
            else:
                module = snn.network.get_submodule(node.target) if node.op == 'call_module' else None
                value = evaluate(node, env, module)
                zeros.setdefault(node, evaluate(node, zeros, module))  # what it puts out when nothing has ever arrived
                env[node] = value if step == 0 else value - zero_response(node, module, env)
        found.append((total.clone(), events))
    return found


def zero_response(node, module, env):
    return evaluate(node, {arg: torch.zeros_like(env[arg]) for arg in node.all_input_nodes}, module)


@pytest.mark.parametrize('options', [
    dict(sizes=1), dict(sizes=2, dead_zone=.75), dict(), dict(dead_zone=.75, narrowing=1.5),
    dict(sizes=6, dead_zone=1.), dict(sizes=6, narrowing=2), dict(shrinking=2),
    dict(sizes=2, shrinking=2, settling_steps=3, narrowing=1.5)], ids=str)
def test_equals_a_simulation_that_sends_changes(options):
    x = images()
    snn = exact(Plain(), x, **options)
    reference = naive(snn, x, T)
    for snn.chunk_steps in (None, 1, 3):
        outputs = snn.anytime(range(1, T + 1), x)
        for step, (expected, _) in enumerate(reference, 1):
            assert torch.equal(outputs[step], expected)
    with mmsnn.CostCounter(snn) as counter:
        snn(x)
    expected = [sum(events[name] for _, events in reference) for name in reference[0][1]]
    assert list(counter.cost.events.values()) == expected and min(expected) > 0


def test_worked_out_by_hand():
    model = Differential(sizes=3)  # 0, 1, 2, 4 times h
    state, h, sent = model.start(torch.zeros(1), T), torch.tensor([.5]), []
    for activation in (3.3, 3.3, 3.3, .4, .4):
        spikes, state = model.step(torch.tensor([activation]), torch.zeros(1), state, h, T)
        sent.append(float(spikes))
    # 6.6 h: 4 is nearest, then 2.6 h: 2, then .6 h: 1; 7 h sent, .8 h wanted: -6.2 h: -4, and -2.2 h: -2.
    assert sent == [2., 1., .5, -2., -1.] and float(state[0]) == .5
    assert model.values == 7 and Differential(3, uniform=True).values == 7
    steps = torch.tensor([-9., -.5, .4, .6, 1.4, 1.6, 2.9, 3., 5.])
    assert model.nearest(steps).tolist() == [-4, 0, 0, 1, 1, 2, 2, 4, 4]
    assert Differential(3, uniform=True).nearest(steps).tolist() == [-3, 0, 0, 1, 1, 2, 3, 3, 3]
    assert Differential(3, dead_zone=.75).nearest(torch.tensor([.7, -.75, .8, 1.4, 1.6])).tolist() == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match='dead_zone must be from 0.5 to 1'):
        mmsnn.Pipeline(neuron='differential', dead_zone=.4)


def test_a_zone_that_narrows_leaves_little_differences_to_the_third_step():
    model = Differential(sizes=4, narrowing=4.)  # zones of 8, 2, 0.5, 0.5, ... h
    state, h, sent = model.start(torch.zeros(3), 3), torch.ones(1), []
    for step in range(3):
        spikes, state = model.at(step, 5).step(torch.tensor([8.5, 5., 1.6]), torch.zeros(1), state, h, 5)
        sent.append(spikes.tolist())
    assert sent == [[8., 0., 0.], [0., 4., 0.], [0., 1., 2.]]
    assert [model.at(step, 2).dead_zone for step in range(2)] == [2., .5]
    assert [float(model.at(torch.tensor(step), 5).dead_zone) for step in (0, 2, 4)] == [8., .5, .5]
    with pytest.raises(ValueError, match='narrowing must be at least 1'):
        mmsnn.Pipeline(neuron='differential', narrowing=.5)


def test_sizes_that_shrink_begin_large_and_end_fine():
    model = Differential(sizes=2, shrinking=2, settling_steps=3)  # sizes of 4 and 8, 2 and 4, 1 and 2, 1 and 2, ... h
    state, h, sent = model.start(torch.zeros(3), T), torch.tensor([.5]), []
    for step in range(4):
        spikes, state = model.at(step, T).step(torch.tensor([6.8, 2.2, .9]), torch.zeros(1), state, h, T)
        sent.append((spikes / h).tolist())
    assert sent == [[8., 4., 0.], [4., 0., 2.], [2., 0., 0.], [0., 0., 0.]]  # of 13.6, 4.4 and 1.8 h
    assert [float(model.at(torch.tensor(step), T).scale) for step in (0, 1, 2, 4)] == [4., 2., 1., 1.]
    assert (model.values, model.highest, model.reach) == (5, 8, 14)
    with pytest.raises(ValueError, match='shrinking must be at least 1'):
        mmsnn.Pipeline(neuron='differential', shrinking=0)
    with pytest.raises(ValueError, match='has no effect with settling_steps=1'):
        mmsnn.Pipeline(neuron='differential', shrinking=2, settling_steps=1)


def test_sizes_that_shrink_come_nearer_in_four_steps():
    x = torch.randn(16, 3, 8, 8).cumsum(2).cumsum(3) / 4
    net, errors = Plain().eval(), []
    for shrinking in (1, 2):
        snn = mmsnn.convert(net, 4)
        mmsnn.calibrate(snn, [x], 'differential', shrinking=shrinking, progress=False)
        with torch.no_grad():
            errors.append(float((snn(x) - net(x)).norm() / net(x).norm()))
    assert errors[1] < .7 * errors[0]


def test_a_zone_that_narrows_saves_events_and_ends_as_near():
    x = torch.randn(16, 3, 8, 8).cumsum(2).cumsum(3) / 4
    net, events, errors = Plain().eval(), [], []
    for narrowing in (1., 4.):
        snn = mmsnn.convert(net, 3)
        mmsnn.calibrate(snn, [x], 'differential', narrowing=narrowing, progress=False)
        with mmsnn.CostCounter(snn) as counter, torch.no_grad():
            errors.append(float((snn(x) - net(x)).norm() / net(x).norm()))
        events.append(sum(counter.cost.events.values()))
    assert events[1] < events[0] and errors[1] < errors[0] + .02


@pytest.mark.parametrize('sizes', [1, 2, 4, 7])
@pytest.mark.parametrize('dead_zone', [.5, .75, 1., 4.5])
def test_nearest_by_bits_is_the_nearest(sizes, dead_zone):
    model = Differential(sizes, dead_zone=dead_zone)
    ties = torch.tensor([0., .5, .75, 1., 1.5, 3., 6., 12., 96., 1e30, torch.inf])
    around = torch.cat([ties, ties.nextafter(torch.tensor(0.)), ties.nextafter(torch.tensor(torch.inf))])
    differences = torch.cat([around, -around, torch.randn(5000) * 20, torch.tensor([torch.nan])])
    expected = model.nearest(differences.double()).float()
    assert torch.equal(model.nearest(differences), expected)
    columns = differences[:5000].view(50, 100).t()
    assert torch.equal(model.nearest(columns), expected[:5000].view(50, 100).t())


@pytest.mark.parametrize('dead_zone', [.5, .6, .75, 1.])
@pytest.mark.parametrize('sizes', [1, 4])
@pytest.mark.parametrize('uniform', [False, True])
def test_a_steady_current_is_met_within_the_dead_zone_and_then_nobody_fires(uniform, sizes, dead_zone):
    model, h = Differential(sizes, uniform, dead_zone), torch.rand(1000) + .01
    activation = (torch.rand(1000) * 5 * model.highest - model.highest) * h
    state, errors, counts = model.start(torch.zeros(1000), T), [], []
    for _ in range(12):
        spikes, state = model.step(activation, torch.zeros(1), state, h, T)
        errors.append(((activation - state[0]) / h).abs())
        counts.append(int((spikes != 0).sum()))
    assert (errors[-1] <= dead_zone + 1e-4).all() and counts[-1] == 0
    torch.testing.assert_close(state[0], model.rate(activation, h, T, 0.), rtol=1e-3, atol=1e-3)
    if not uniform:  # what is left is at most a third of what was missing, once it is within reach
        for before, after in zip(errors, errors[1:]):
            reached = before <= model.highest
            assert (after[reached] <= (before[reached] / 3).clamp(min=dead_zone) + 1e-4).all()


def test_a_network_at_rest_is_silent():
    x = images()
    snn = exact(Plain(), x, sizes=4)
    events = [sum(events.values()) for _, events in naive(snn, x, 40)]
    assert events[0] > 0 and events[-5:] == [0] * 5
    ann = Plain().eval()
    rough, snn = mmsnn.convert(ann, T), mmsnn.convert(ann, 40)
    mmsnn.calibrate(rough, [x], 'differential', progress=False)
    snn.load_state_dict(rough.state_dict())
    torch.testing.assert_close(snn(x), snn.quantised(x), rtol=1e-3, atol=1e-3)  # it has arrived at the closed form


def test_charge_is_conserved():
    x = images()
    snn = exact(Plain(), x, sizes=4)
    for name, layer in simulate(snn, x)[1].items():  # of sums: of what arrived, and of what has been sent
        neuron = snn.neurons[name]
        activation = (layer['currents'] + neuron.bias.view(-1, 1, 1)).clamp(min=0)
        left = activation - layer['spikes']
        changes = layer['spikes'].diff(dim=0, prepend=torch.zeros_like(layer['spikes'][:1]))
        number = (changes / neuron.threshold.view(-1, 1, 1)).abs()
        assert set(number.unique().tolist()) <= {0., 1., 2., 4., 8.}
        assert torch.equal(changes.sum(0) + left[-1], activation[-1])


def test_one_calibration_serves_every_t():
    x, ann = torch.randn(4, 3, 16, 16), randomise_norms(Residual()).eval()
    snn = mmsnn.convert(ann, 4)
    mmsnn.calibrate(snn, [x], 'differential', progress=False)
    state = copy.deepcopy(snn.state_dict())
    errors = {}
    for steps in (1, 2, 4, 16):
        other = mmsnn.convert(ann, steps)
        other.load_state_dict(state)
        assert torch.equal(other(x), snn.anytime([steps], x)[steps] if steps <= 4 else other(x))
        errors[steps] = ((other(x) - ann(x)).norm() / ann(x).norm()).item()
    assert errors[1] > errors[2] > errors[4] and errors[16] < .05
    again = mmsnn.convert(ann, 16)
    mmsnn.calibrate(again, [x], 'differential', progress=False)
    for (key, value), other in zip(state.items(), again.state_dict().values(), strict=True):
        assert key == 'network' or key.endswith('_settings') or torch.equal(value, other), key


def test_error_falls_geometrically_until_rounding():
    x, ann = torch.randn(4, 3, 16, 16), randomise_norms(Residual()).eval()
    snn = mmsnn.convert(ann, T)
    mmsnn.calibrate(snn, [x], 'differential', progress=False, sizes=8)
    reference = ann(x)
    errors = [((value - reference).norm() / reference.norm()).item() for value in snn.anytime([1, 2, 3, 8], x).values()]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 1.5 and errors[3] < .01


@pytest.mark.parametrize('steps', [1, 2, 3])
def test_thresholds_meet_activations_best_after_some_steps(steps):
    x = torch.rand(2000, 1) ** 3
    histogram = ActivationHistogram(1)
    histogram.update(x)
    model = Differential(3)
    found = float(model.thresholds(histogram, mmsnn.Pipeline(neuron='differential', settling_steps=steps), T))

    def error(h):
        left = x / h
        for _ in range(steps):
            left = left - model.nearest(left)
        return float(left.square().sum() * h ** 2)

    best = min(error(float(x.max()) * k / 400) for k in range(1, 400))
    assert error(found) <= 1.1 * best


def test_thresholds_for_more_steps_are_finer_and_round_less_in_the_end():
    x, net = torch.randn(8, 3, 8, 8).cumsum(2).cumsum(3) / 4, Plain().eval()
    errors, means = [], []
    for steps in (2, 3):
        snn = mmsnn.convert(net, 8)
        report = mmsnn.calibrate(snn, [x], 'differential', levels=9, settling_steps=steps, progress=False)
        errors.append(float((snn(x) - net(x)).norm() / net(x).norm()))
        means.append(report[0].threshold)
    assert means[1] < .9 * means[0] and errors[1] < .9 * errors[0]
    with pytest.raises(ValueError, match='the largest spike is worth 1048576 thresholds'):
        mmsnn.Pipeline(neuron='differential', sizes=6, shrinking=2, settling_steps=16)
    with pytest.raises(ValueError, match='settling_steps must be at least 1'):
        mmsnn.Pipeline(neuron='differential', settling_steps=0)


def test_bias_is_corrected_in_closed_form():
    x = torch.randn(8, 3, 16, 16)
    ann = Small().eval()
    with torch.no_grad():
        plain, snn = mmsnn.convert(ann, T), mmsnn.convert(ann, T)
        mmsnn.calibrate(plain, [x], 'differential', progress=False, bias=False)
        mmsnn.calibrate(snn, [x], 'differential', progress=False)
        neuron, before = next(iter(snn.neurons.values())), next(iter(plain.neurons.values()))
        error = (ann(x) - before.rate(ann.conv(x))).mean((0, 2, 3))
    torch.testing.assert_close(neuron.bias, error)


def test_compiled_exported_and_in_bfloat16(tmp_path):
    x, ann = torch.randn(2, 3, 16, 16), randomise_norms(Residual()).eval()
    snn = mmsnn.convert(ann, 4)
    mmsnn.calibrate(snn, [x], 'differential', progress=False, sizes=6, narrowing=2, shrinking=2)
    half = mmsnn.convert(ann, 4, dtype='bfloat16')
    half.load_state_dict(snn.state_dict())
    torch.testing.assert_close(half(x), snn(x), rtol=.05, atol=.05)
    fast = mmsnn.convert(ann, 4, compile=True)
    fast.load_state_dict(snn.state_dict())
    torch.testing.assert_close(fast(x), snn(x), rtol=.02, atol=.02)
    with mmsnn.CostCounter(fast) as compiled, mmsnn.CostCounter(snn) as plain:
        fast(x), snn(x)
    assert sum(compiled.cost.events.values()) == pytest.approx(sum(plain.cost.events.values()), rel=2e-3)
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    from mmsnn.export.formats import export
    export(snn, x, tmp_path / 'changes.onnx', 'onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'changes.onnx', providers=['CPUExecutionProvider'])
    output, = session.run(None, {'input': x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), snn(x), rtol=.02, atol=.02)


def test_costs_by_hand():
    snn = mmsnn.convert(three_layers(), 4)
    x = torch.tensor([1., .5]).view(2, 1, 1, 1)
    mmsnn.calibrate(snn, [x], 'differential', progress=False, sizes=2, threshold='max', bias=False)
    # Sizes .5 and 1 of the first layer, 1 and 2 of the second: each neuron sends one spike for each image, in the
    # second layer of the second image the spike of the smallest size.
    with mmsnn.CostCounter(snn) as counter:
        snn(x)
    assert [neuron.threshold.tolist() for neuron in snn.neurons.values()] == [[.5] * 2, [1.] * 3]
    assert counter.cost.events == {'_1': 2 + 2, '_3': 3 + 3}
    assert counter.cost.spikes == {'_1': 2 * 2 + 2, '_3': 3 * 2 + 3}


@pytest.mark.parametrize('option', [dict(signed=True), dict(max_spikes=4), dict(max_spikes=2, max_rate=2),
                                    dict(shift='potential'), dict(potential='channel'), dict(reset='zero'),
                                    dict(bias_per_step=True), dict(threshold='percentile')], ids=str)
def test_options_of_rate_coding_are_refused(option):
    snn = mmsnn.convert(Small(), T)
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* no effect .*'differential'"):
        mmsnn.calibrate(snn, [torch.randn(1, 3, 8, 8)], 'differential', progress=False, **option)


def test_options_of_differential_coding_are_refused_elsewhere():
    snn = mmsnn.convert(Small(), T)
    with pytest.raises(ValueError, match="sizes=6 has no effect .*'integrate-and-fire'"):
        mmsnn.calibrate(snn, [torch.randn(1, 3, 8, 8)], 'signed', progress=False, sizes=6)
