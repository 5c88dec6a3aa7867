"""Convolutions of bytes: the same as the plain loop with the same rounded weights, bit by bit."""
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_engine import T, assert_same, exact, inputs, load

import mmsnn
from mmsnn.export.formats import export
from mmsnn.neurons.differential import Differential
from mmsnn.neurons.pipelines import make_pipeline
from mmsnn.simulation import integers, machine_code, native
from mmsnn.simulation.codes import code_of, nearest_power
from mmsnn.simulation.integers import integer_layers, round_network, round_weights
from mmsnn.simulation.machine_code import library

from networks import Residual, leaves, randomise_norms

PIPELINES = ['light', 'signed', 'differential']


@dataclasses.dataclass(frozen=True, repr=False)
class OfBytes(Differential):
    """The neuron as dtype='int8' means it, in floating point: its target is known to a half, and a byte has room."""

    low: int = 0
    high: int = 0

    def at(self, step, time_steps):
        now = super().at(step, time_steps)
        return dataclasses.replace(self, dead_zone=now.dead_zone, scale=now.scale, narrowing=1., shrinking=1)

    def step(self, current, bias, state, threshold, time_steps):
        halves = (2 * current / threshold - .5).round().clamp(2 * self.low, 2 * self.high)
        return super().step((halves / 2 + .25) * threshold, bias, state, threshold, time_steps)


def of_bytes(snn):
    """Give the neurons of a network the limits of a byte, in the plain loop."""
    for neuron in snn.neurons.values():
        if isinstance(neuron.rule, Differential):
            margin = neuron.rule.highest // 4
            low, high = (0, 127) if neuron.activation is None else (margin - 128, 127 - margin)
            neuron.rule = OfBytes(**vars(neuron.rule), low=low, high=high)


def pair(pipeline='signed', network=Residual, time_steps=T, conversion=None, options=None, **fast):
    """A network with weights of 8 bits whose sums are exact in float32, and the same on integers."""
    ann = randomise_norms(network()).eval()
    plain = mmsnn.convert(ann, time_steps, **conversion or {})
    mmsnn.calibrate(plain, [inputs()], pipeline, progress=False, **options or {})
    exact(plain)
    for neuron in plain.neurons.values():
        neuron.threshold.copy_(2. ** neuron.threshold.log2().round())
    for node, source in integer_layers(plain.plan).items():
        conv, threshold = plain.plan.modules[node], plain.plan.modules[source].threshold
        folded = integers._of_inputs(conv.weight, threshold, conv.groups)
        driven = (conv.weight * folded).mul_(32).round_().clamp_(-127, 127)
        driven[:, 0, 0, 0] = 127  # the largest: the scale is a power of two
        conv.weight.copy_(driven / 32 / folded)
    other = mmsnn.convert(ann, time_steps, dtype='int8', **conversion or {}, **fast)
    load(other, plain)
    of_bytes(plain)
    return plain, other


@pytest.mark.parametrize('pipeline, options', [
    *((name, {}) for name in PIPELINES), ('differential', dict(narrowing=3)), ('differential', dict(shrinking=2)),
    ('differential', dict(shrinking=2, settling_steps=3, sizes=3))],
    ids=[*PIPELINES, 'a zone that narrows', 'sizes that shrink', 'for two steps'])
def test_integers_equal_the_plain_loop_for_every_neuron_and_chunk(pipeline, options, monkeypatch):
    monkeypatch.setattr(native, 'library', lambda: None)  # with it: below
    plain, fast = pair(pipeline, options=options)
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
    mmsnn.calibrate(fast, [inputs()], pipeline, progress=False)
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
def test_compiled_integers_equal_the_plain_loop(monkeypatch):
    monkeypatch.setattr(native, 'library', lambda: None)
    plain, fast = pair('differential', Convolutions, time_steps=2, compile=True)
    torch._dynamo.reset()
    assert_same(fast(inputs()), plain(inputs()))


class Mixed(torch.nn.Sequential):
    """An activation that the machine code does not have."""

    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3),
                         torch.nn.Hardsigmoid(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU())


@pytest.mark.skipif(not library(), reason='needs a C++ compiler and AVX-512 VNNI')
@pytest.mark.parametrize('network, programs', [(Mixed, 1), (Convolutions, 0)])
def test_what_machine_code_does_not_compute_is_compiled(network, programs):
    plain, fast = pair('differential', network, time_steps=2, conversion=dict(coding='differential'), compile=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same(fast(inputs()), plain(inputs()))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == programs


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


def outputs(dtype, calibrated_as, pipeline='differential', time_steps=8):
    """A network's outputs on the calibration images, those of its ANN, and the network that was calibrated."""
    torch.manual_seed(0)
    ann = Convolutions().eval()
    first, second = (mmsnn.convert(ann, time_steps, dtype=kind) for kind in (calibrated_as, dtype))
    mmsnn.calibrate(first, [inputs(8)], pipeline, progress=False)
    second.load_state_dict(first.state_dict())
    return second(inputs(8)), ann(inputs(8)), first


def test_calibration_absorbs_the_rounding_of_weights(monkeypatch):
    monkeypatch.setattr(integers, 'LARGEST', 7)  # 4 bits: beside the other errors, that of 8 is hard to see
    after, ann, _ = outputs('int8', 'float32')
    before, _, _ = outputs('int8', 'int8')
    error_after, error_before = ((value - ann).square().mean() for value in (after, before))
    assert error_before < .9 * error_after


@pytest.mark.parametrize('pipeline', ['differential', 'none'])
def test_a_network_calibrated_on_integers_holds_the_rounded_weights(pipeline):
    _, _, snn = outputs('int8', 'int8', pipeline)
    assert snn.settings['weight_bits'] == 8 and 'weight_bits=8' in repr(snn)
    for node, source in integer_layers(snn.plan).items():
        conv, threshold = snn.plan.modules[node], snn.plan.modules[source].threshold
        found, scale = round_weights(conv.weight, threshold, conv.groups)
        driven = conv.weight * integers._of_inputs(conv.weight, threshold, conv.groups) / scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(driven, found.double(), rtol=0, atol=1e-4)
    state = {key: value.clone() for key, value in snn.state_dict().items()}
    round_network(snn.plan)
    for node in integer_layers(snn.plan):  # but for the last bit of a product
        torch.testing.assert_close(snn.plan.modules[node].weight, state[f'network.{node.target}.weight'], rtol=1e-6,
                                   atol=0)
    with pytest.raises(ValueError, match='calibrated or rounded.*convert the ANN again'):
        mmsnn.calibrate(snn, [inputs()], progress=False)


def test_weights_calibrated_on_integers_serve_floats_and_those_of_floats_integers():
    values, expected, _ = outputs('float32', 'int8')
    other, _, snn = outputs('int8', 'float32')
    assert snn.settings.get('weight_bits') is None
    for value in (values, other):
        assert (value - expected).square().mean() < .01 * expected.square().mean()


def for_export():
    """A network calibrated on integers, loaded into floats as exporters want it, and its integers by channel."""
    _, _, snn = outputs('int8', 'int8', 'light')
    other = mmsnn.convert(Convolutions().eval(), 8)
    other.load_state_dict(snn.state_dict())
    layers = {node: (snn.plan.modules[node], snn.plan.modules[source].threshold)
              for node, source in integer_layers(snn.plan).items()}
    return other, {node.target: round_weights(conv.weight, threshold, conv.groups)[0]
                   for node, (conv, threshold) in layers.items()}


def test_nir_carries_weights_of_8_bits(tmp_path):
    nir = pytest.importorskip('nir')
    snn, expected = for_export()
    export(snn, inputs(), tmp_path / 'net.nir', 'nir')
    nodes = nir.read(tmp_path / 'net.nir').nodes
    for name, wanted in expected.items():  # the largest weight of a channel is 127
        weight = torch.from_numpy(nodes[f'_{name}'].weight).double().flatten(1)
        found = weight * 127 / weight.abs().amax(1, keepdim=True)
        assert (found - found.round()).abs().max() < 1e-4
        for row, other in zip(found.round(), wanted.flatten(1)):  # groups are written with the zeros between them
            assert row[row != 0].tolist() == other[other != 0].tolist()


def test_onnx_carries_the_rounded_weights_to_the_bit(tmp_path):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    snn, expected = for_export()
    export(snn, inputs(), tmp_path / 'net.onnx', 'onnx')
    written = []

    def read(graph):
        written.extend(onnx.numpy_helper.to_array(value) for value in graph.initializer)
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            if attribute.name == 'value':
                written.append(onnx.numpy_helper.to_array(attribute.t))
            read(attribute.g)  # empty but for loops

    read(onnx.load(tmp_path / 'net.onnx').graph)
    for name in expected:
        weight = snn.network.get_submodule(str(name)).weight.detach().numpy()
        assert any(value.shape == weight.shape and (value == weight).all() for value in written), name


def test_weights_that_are_calibrated_too_are_rounded_when_they_are_simulated():
    snn = mmsnn.convert(Convolutions().eval(), 4, dtype='int8')
    mmsnn.calibrate(snn, [inputs()], 'light', weights=True, iterations=2, progress=False)
    assert 'weight_bits' not in snn.settings and snn(inputs()).isfinite().all()


def test_a_failed_calibration_leaves_the_weights_of_the_ann(monkeypatch):
    snn = mmsnn.convert(Convolutions().eval(), 4, dtype='int8')
    before = snn.network.get_submodule('2').weight.clone()
    monkeypatch.setattr('mmsnn.calibration.procedure.calibrate_layer', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mmsnn.calibrate(snn, [inputs()], progress=False)
    assert torch.equal(before, snn.network.get_submodule('2').weight)


def test_what_a_byte_does_not_hold_is_refused_by_name():
    snn = mmsnn.convert(randomise_norms(Residual()).eval(), 4)
    mmsnn.calibrate(snn, [inputs()], 'differential', sizes=8, progress=False)
    snn.dtype = 'int8'
    with pytest.raises(ValueError, match=r"dtype='int8'.*Differential\(sizes=8\) at neurons\..* more than that"):
        snn(inputs())


@pytest.mark.parametrize('changes, activation, expected', [
    (dict(pipeline='light'), None, (0, 0, 255, False)), (dict(pipeline='signed'), None, (128, 0, 255, False)),
    (dict(pipeline='differential', sizes=6), None, (8, 0, 127, True)),
    (dict(pipeline='differential', sizes=6), torch.nn.SiLU(), (128, -120, 119, True)),
    (dict(pipeline='differential', sizes=6, dead_zone=.7), None, (8, 0, 239, False)),
    (dict(pipeline='differential', sizes=9, uniform=True), None, (0, 0, 127, True)),
    (dict(pipeline='differential', sizes=7), None, (16, 0, 127, True)),
    (dict(pipeline='differential', sizes=7), torch.nn.SiLU(), None),
    (dict(pipeline='differential', sizes=8), None, None)])
def test_which_neurons_fit_into_a_byte(changes, activation, expected):
    neuron = mmsnn.IFNeuron(activation=activation)
    neuron.rule = make_pipeline(changes.pop('pipeline'), **changes).rule(64)
    assert code_of(neuron) == expected


@pytest.mark.parametrize('activation', [None, torch.nn.Tanh()])
@pytest.mark.parametrize('sizes', range(1, 7))
def test_sums_of_changes_stay_within_a_byte_whatever_the_targets(sizes, activation):
    neuron = mmsnn.IFNeuron(activation=activation)
    neuron.rule = Differential(sizes)
    code, generator = code_of(neuron), torch.Generator().manual_seed(sizes)
    sent, codes = torch.zeros(10_000), []
    for _ in range(60):  # mostly jumps from one end to the other, which overshoot most
        target = code.target(torch.randn(10_000, generator=generator) * 300)
        sent = sent + code.change(neuron.rule, target - sent)
        codes.append(sent + code.zero_point)
    codes = torch.stack(codes)
    assert codes.min() >= 0 and codes.max() <= 255
    assert sizes < 6 or activation is None or codes.max() - codes.min() > 250  # no room is wasted


def test_the_nearest_power_of_two_of_halves():
    values = torch.arange(-2 ** 10, 2 ** 10).float() / 2 + .25
    found = nearest_power(values)
    assert torch.equal(found.round(), Differential(16).nearest(values))
    assert nearest_power(torch.tensor([0., 3., -6.])).tolist() == [0., 4., -8.]


def test_halves_of_thresholds_decide_as_the_whole_difference_does():
    rule = Differential(6)
    neuron = mmsnn.IFNeuron()
    neuron.rule = rule
    code, generator = code_of(neuron), torch.Generator().manual_seed(0)
    activation = torch.rand(100_000, generator=generator) * 127
    sent = torch.randint(0, 128, (100_000,), generator=generator).float()
    assert torch.equal(code.change(rule, code.target(activation) - sent), rule.nearest(activation - sent))


def test_a_compiler_that_fails_is_reported_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv('CXX', 'false')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    if 'avx512vbmi' not in Path('/proc/cpuinfo').read_text():
        pytest.skip('this processor has no need of it')
    machine_code._library.cache_clear()
    try:
        plain, fast = pair('differential')
        for _ in range(2):
            assert_same(fast(inputs()), plain(inputs()))
    finally:
        machine_code._library.cache_clear()
    assert caplog.text.count('native.cpp could not be compiled') == 1


@pytest.mark.skipif(not library(), reason='needs a C++ compiler and AVX-512 VNNI')
def test_damaged_machine_code_is_made_again(monkeypatch, tmp_path):
    damaged = tmp_path / 'mmsnn' / 'native' / Path(library()._name).name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b'of a disk that was full')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    machine_code._library.cache_clear()
    try:
        assert library().fire and [path.name for path in damaged.parent.iterdir()] == [damaged.name]
    finally:
        machine_code._library.cache_clear()


@pytest.mark.parametrize('pipeline', ['signed', 'differential'])
def test_without_such_a_processor_the_same_is_computed_in_float32(pipeline, monkeypatch, caplog):
    plain, fast = pair(pipeline)
    monkeypatch.setattr(integers, '_LIBRARY', None)
    assert_same(fast(inputs()), plain(inputs()))
    assert "dtype='int8' needs a processor" in caplog.text


class Context(torch.nn.Module):
    """A branch of one position is added to a whole map; a depthwise convolution; more channels than a block."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = torch.nn.Conv2d(3, 96, 3, padding=1), torch.nn.Conv2d(96, 96, 3, 2, 1, groups=96)
        self.before, self.squeeze = torch.nn.Conv2d(3, 8, 16), torch.nn.Conv2d(8, 96, 1)
        self.last = torch.nn.Conv2d(96, 70, 1)

    def forward(self, x):
        relu = torch.nn.functional.relu
        maps = relu(self.depthwise(relu(self.stem(x))) + self.squeeze(relu(self.before(x))))
        return relu(self.last(maps))


class Bottlenecks(torch.nn.Module):
    """Convolutions without an activation between them, and a sum of them, as in MobileNetV2."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 24, 1)
        self.wide, self.narrow = torch.nn.Conv2d(24, 144, 1), torch.nn.Conv2d(144, 24, 1)
        self.last = torch.nn.Conv2d(24, 32, 3, 2, 1, dilation=1)

    def forward(self, x):
        relu6 = torch.nn.functional.relu6
        x = self.first(relu6(self.stem(x)))
        x = x + self.narrow(relu6(self.wide(x)))
        return relu6(self.last(x))


class Offset(Convolutions):
    """Adds a map of integers, which are no spikes."""

    def forward(self, x):
        offset = torch.arange(8).view(1, 8, 1, 1)
        x = self[3](self[2](self[1](self[0](x))) + offset)
        return self[6](self[5](self[4](x)))


def test_integers_that_are_added_count_as_numbers():
    snn = mmsnn.convert(Offset().eval(), T, dtype='int8')
    mmsnn.calibrate(snn, [inputs(8)], 'differential', progress=False)
    expected = snn.network(inputs(8))
    assert (snn(inputs(8)) - expected).square().mean() < .01 * expected.square().mean()


def test_sums_of_too_many_products_for_32_bits_stay_floats():
    """127 times 255 times 66,312 is more than 2**31."""
    ann = torch.nn.Sequential(torch.nn.Conv2d(1, 66_312, 1), torch.nn.ReLU(), torch.nn.Conv2d(66_312, 2, 1),
                              torch.nn.ReLU(), torch.nn.Conv2d(2, 1, 1))
    assert [node.target for node in integer_layers(mmsnn.convert(ann.eval(), 2).plan)] == ['4']


@pytest.fixture(params=[True, False], ids=['with AMX where there is', 'without AMX'])
def amx(request, monkeypatch):
    if not request.param:
        monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', 'AVX512_CORE_VNNI')
    machine_code._library.cache_clear()
    yield
    machine_code._library.cache_clear()


@pytest.mark.skipif(not library(), reason='needs a C++ compiler and AVX-512 VNNI')
@pytest.mark.parametrize('shrinking', [1, 2])
@pytest.mark.parametrize('network, layers', [(Residual, 3), (Context, 4), (Bottlenecks, 5)])
def test_machine_code_equals_the_plain_loop(network, layers, shrinking, amx):
    plain, fast = pair('differential', network, conversion=dict(coding='differential'),
                       options=dict(narrowing=3, shrinking=shrinking))
    x = inputs(3)
    expected = plain(x)
    for fast.chunk_steps in (None, 1, 3):
        assert_same(fast(x), expected)
    assert {len(chunk.native) for chunk, _ in fast.loop._chunks.values()} == {layers}
    assert all(value.abs().max() > 0 for value in leaves(expected))


@pytest.mark.parametrize('pipeline', PIPELINES)
def test_threads_that_simulate_at_the_same_time_do_not_disturb_each_other(pipeline):
    _, fast = pair(pipeline, Convolutions)
    images = [torch.randn(1, 3, 24 + 8 * number, 40) for number in range(4)]
    expected = [fast(x) for x in images]
    with ThreadPoolExecutor(len(images)) as pool:
        found = list(pool.map(fast, images * 20))
    assert all(torch.equal(value, expected[number % len(images)]) for number, value in enumerate(found))
