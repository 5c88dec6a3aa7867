"""The time loop, in every way of running it, against a naive simulation: bit by bit where arithmetic is exact."""
import copy
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

import mmsnn
from mmsnn.neurons.pipelines import make_pipeline
from mmsnn.simulation import compiling, firing
from mmsnn.simulation.loop import TimeLoop, schedule

from networks import Functional, Naive, Residual, leaves, randomise_norms, simulate

T = 6
RULES = {
    'light': dict(pipeline='light'),
    'signed': dict(pipeline='signed'),
    'hard reset': dict(pipeline='spike-norm'),
    'a bias per step': dict(pipeline='light', bias_per_step=True),
    'per position': dict(pipeline='signed', potential='position'),
    'unbounded': dict(pipeline='signed', max_spikes=None),
    'not clipped': dict(pipeline='signed', max_rate=1, clip=False),
}
CONVERSIONS = {
    'all': {},
    'potential readout': dict(readout='potential'),
    'delayed': dict(delay=3),
    'some analog': dict(exclude=['relu_1', 'relu6']),
    'nothing spikes': dict(exclude=['*']),
}


def exact(snn):
    """Round what is in a network to few bits, so that sums are exact and hence the same in any order.

    A processor, a compiler or a size of batch chooses the order: nothing that rounds may be compared bit by bit. Means
    are exact over powers of two alone, so that images are to be such that pooling leaves as many positions.
    """
    with torch.no_grad():
        for value in snn.network.parameters():
            value.copy_((value * 64).round() / 64)
        for name, value in snn.network.named_buffers():
            if value.is_floating_point():
                value.copy_((value * 64).round().clamp(min=1 if name.endswith('threshold') else -2 ** 20) / 64)
        for norm in snn.network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):  # divides by sqrt(var + eps)
                norm.eps = 2. ** -10
                norm.running_var.copy_(4. ** norm.running_var.log2().div(2).round() - norm.eps)
    return snn


def inputs(batch=2, height=16, width=None):
    images = torch.randn(batch, 3, height, width or height, generator=torch.Generator().manual_seed(0))
    return (images * 16).round() / 16


def both(network, x, conversion=None, calibration=None, **fast):
    """A network calibrated, and the same converted with other settings of the engine."""
    conversion = {k: v for k, v in (conversion or {}).items()}
    ann = randomise_norms(network()).eval()
    plain = mmsnn.convert(ann, T, **conversion)
    mmsnn.calibrate(plain, [x], progress=False, **(calibration or dict(pipeline='signed')))
    exact(plain)
    other = mmsnn.convert(ann, T, **conversion, **fast)
    load(other, plain)
    return plain, other


def load(other, snn):
    """Load what another network holds, and what a state does not hold of its normalisations."""
    other.load_state_dict(snn.state_dict())
    for norm, given in zip(other.network.modules(), snn.network.modules()):
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eps = given.eps


def eager(snn):
    """The same network with all that compiling changes but the compiler: memory layout, types, size of chunks."""
    snn = copy.copy(snn)
    snn._loop = TimeLoop(snn.network, snn.plan, compile=True)
    snn._loop.program = lambda module, device, freezing=True: module
    return snn


def naive(snn, x, stops=None):
    """What a naive simulation gives at each of ``stops``, or at T."""
    found = {step: snn._outputs(sums, snn.plan.once(snn.bind(x)), step, snn.settings['shift'])
             for step, sums in Naive(snn)(x, stops).items()}
    return found if stops else found[snn.time_steps]


def assert_same(value, expected):
    for a, b in zip(leaves(value), leaves(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('calibration', RULES.values(), ids=RULES)
@pytest.mark.parametrize('network', [Residual])
def test_the_loop_equals_a_naive_simulation_for_every_rule_and_chunk(network, calibration):
    plain, _ = both(network, inputs(), calibration=calibration)
    expected = naive(plain, inputs())
    for plain.chunk_steps in (None, 1, 2, 4, T):
        assert_same(plain(inputs()), expected)
        assert_same(eager(plain)(inputs()), expected)


CHANGES = {'changes': dict(pipeline='differential'),
           'sizes that shrink, a zone that narrows': dict(pipeline='differential', narrowing=2, shrinking=2)}


@pytest.mark.parametrize('calibration', {**RULES, **CHANGES}.values(), ids=[*RULES, *CHANGES])
def test_neurons_that_fire_in_tiles_are_the_same(calibration, monkeypatch):
    plain, _ = both(Residual, inputs(), calibration=calibration)
    for plain.chunk_steps in (1, 4):
        plain._loop = None
        with mmsnn.CostCounter(plain) as whole:
            expected = plain(inputs())
        monkeypatch.setattr(firing, 'TILE', 100)
        with mmsnn.CostCounter(plain) as tiled:
            assert_same(plain(inputs()), expected)
        assert tiled.cost == whole.cost
        monkeypatch.undo()


def test_what_is_not_clipped_goes_up_to_the_ceiling_of_the_activation():
    x = inputs()
    plain, other = both(Functional, x, calibration=RULES['not clipped'], chunk_steps=3)
    assert_same(leaves(plain(4 * x)), leaves(naive(plain, 4 * x)))
    assert_same(leaves(other(4 * x)), leaves(plain(4 * x)))
    assert_same(leaves(eager(plain)(4 * x)), leaves(plain(4 * x)))
    (name, neuron), = [(name, neuron) for name, neuron in plain.neurons.items() if neuron.ceiling < 20]
    _, layers = simulate(plain, 4 * x)
    sent, level = (layers[name]['spikes'].sum(0) / T).amax((0, 2, 3)), neuron.threshold / T
    assert (sent <= neuron.ceiling + level / 2).all()
    assert (sent > neuron.rule.max_rate * neuron.threshold + level).any(), 'more than clip=True would let through'


@pytest.mark.parametrize('conversion', CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize('network', [Residual, Functional], ids=lambda n: n.__name__)
def test_the_loop_equals_a_naive_simulation_for_every_conversion(network, conversion):
    known = mmsnn.convert(network(), T).neurons
    conversion = {key: [p for p in value if p == '*' or p in known] if key == 'exclude' else value
                  for key, value in conversion.items()}
    plain, _ = both(network, inputs(), conversion)
    # What stays analog divides and multiplies: no number of bits makes that exact.
    same = torch.testing.assert_close if 'exclude' in conversion else assert_same
    stops = [4, T] if 'delay' in conversion else [2, 3, T]
    expected = naive(plain, inputs(), stops)
    for plain.chunk_steps in (None, 1, 2, T):
        for snn in (plain, eager(plain)):
            same(snn(inputs()), expected[T])
            for value, wanted in zip(snn.anytime(stops, inputs()).values(), expected.values(), strict=True):
                same(value, wanted)


@pytest.mark.parametrize('pipeline', ['light', 'signed', 'spike-norm', 'differential'])
def test_a_step_in_place_is_the_step(pipeline):
    generator = torch.Generator().manual_seed(0)
    rule = make_pipeline(pipeline).rule(T)
    threshold, bias = torch.rand(4, 1, generator=generator) + .5, torch.randn(4, 1, generator=generator)
    state = rule.start(torch.randn(2, 4, 50, generator=generator), T)
    kept, spikes = [tensor.clone() for tensor in state], torch.empty(2, 4, 50)
    for _ in range(T):
        current = torch.randn(2, 4, 50, generator=generator)
        expected, state = rule.step(current, bias, state, threshold, T)
        rule.step_in_place(current, bias, tuple(kept), threshold, T, spikes)
        for value, wanted in zip((spikes, *kept), (expected, *state), strict=True):
            assert torch.equal(value, wanted)
    assert spikes.count_nonzero()


def test_chunks_end_at_every_stop():
    assert schedule([0, 3, 8], 4, equal=False) == [3, 4, 1] and schedule([2, 6], 4, equal=True) == [2, 2, 2]


def test_spikes_are_counted_alike():
    plain, _ = both(Residual, inputs())
    reference, costs = Naive(plain), []
    reference(inputs())
    for snn in (plain, eager(plain)):
        with mmsnn.CostCounter(snn) as counter:
            snn(inputs())
        costs.append(counter.cost)
    assert costs[0] == costs[1] and list(costs[0].spikes.values()) == list(reference.spikes.values())


@pytest.mark.parametrize('time_steps, dtype', [(127, torch.uint8), (128, torch.int32)])
def test_counts_take_no_more_memory_than_they_need(time_steps, dtype):
    snn = mmsnn.convert(randomise_norms(Residual()).eval(), time_steps)
    mmsnn.calibrate(snn, [inputs()], 'signed', progress=False)
    exact(snn)
    fast = eager(snn)
    assert_same(fast(inputs()), snn(inputs()))
    counts = [tensor for entry, tensor in first_kept(fast) if entry.kind == 'neuron' and entry.number == 1]
    assert {count.dtype for count in counts} == {dtype}  # the most a neuron may fire is 2 T


def first_kept(snn):
    """The tensors that chunks hand over, before the first step."""
    values = snn.bind(inputs())
    for _, chunk, kept, _ in snn._loop._run(values, [0, 2], None, {}, each_step=False):
        return list(zip(chunk.kept, kept))


@pytest.mark.parametrize('network', [Residual, Functional], ids=lambda n: n.__name__)
def test_outputs_lie_in_memory_as_those_of_the_ann(network):
    # What follows a backbone may read memory without asking for strides, as mmcv's RoIAlign does.
    plain, _ = both(network, inputs())
    for value, expected in zip(leaves(eager(plain)(inputs())), leaves(plain.network(inputs())), strict=True):
        assert value.stride() == expected.stride()


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
@pytest.mark.parametrize('calibration', [RULES['light'], RULES['signed']], ids=['light', 'signed'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_inputs_that_neurons_would_hide_are_refused(calibration, dtype, bad):
    """NaN reaches no threshold, so that a neuron is silent, and a sum of infinities is NaN."""
    plain, _ = both(Residual, inputs(), calibration=calibration)
    plain.dtype, x = dtype, inputs()
    x[0, 0, 3, 3] = bad
    for call in (plain, plain.quantised):
        with pytest.raises(ValueError, match='input 0 holds NaN or infinite values'):
            call(x)


def test_a_state_loaded_in_inference_mode_serves_outside_of_it():
    plain, _ = both(Residual, inputs())
    with torch.inference_mode():
        other = mmsnn.convert(randomise_norms(Residual()).eval(), plain.time_steps)
        other.load_state_dict(plain.state_dict())
        assert torch.equal(other(inputs()), plain(inputs()))
    assert torch.equal(other(inputs()), plain(inputs()))
    for neuron in other.neurons.values():
        neuron.bias.add_(1.)  # noticed, as elsewhere
    assert not torch.equal(other(inputs()), plain(inputs()))


def test_a_cache_folder_that_cannot_be_written_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    usual = str(Path(tempfile.gettempdir(), 'torchinductor_me'))
    for home, expected in ((tmp_path / 'file', usual), (tmp_path, str(tmp_path / 'mmsnn' / 'inductor'))):
        monkeypatch.setenv('XDG_CACHE_HOME', str(home))
        monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', usual)
        compiling.keep_programs()
        assert os.environ['TORCHINDUCTOR_CACHE_DIR'] == expected


def test_engine_notices_changed_weights_and_neurons():
    plain, _ = both(Residual, inputs())
    fast = eager(plain)
    fast(inputs())
    with torch.no_grad():
        fast.network.conv2.weight.mul_(-1)
    next(iter(fast.neurons.values())).threshold = torch.ones(6)
    assert_same(fast(inputs()), plain(inputs()))  # they share their modules


@pytest.mark.parametrize('calibration', [dict(pipeline='signed'), dict(pipeline='signed', potential='position')],
                         ids=['per channel', 'per position'])
def test_states_lie_in_memory_as_currents_do(calibration):
    # Transposing them at every step costs more than the neurons themselves.
    plain, _ = both(Residual, inputs(), calibration=calibration)
    maps = [tensor for _, tensor in first_kept(eager(plain)) if tensor.ndim == 4]
    assert maps and all(state.is_contiguous(memory_format=torch.channels_last) for state in maps)


@pytest.mark.skipif(shutil.which('c++') is None and shutil.which('g++') is None, reason='needs a C++ compiler')
@pytest.mark.parametrize('network', [Residual, Functional], ids=lambda n: n.__name__)
def test_compiled_simulation_equals_the_plain_loop_for_images_of_any_size(network, monkeypatch):
    plain, fast = both(network, inputs(), compile=True)
    monkeypatch.setattr(compiling, '_programs', {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # The programs of torch 2.1.2 round otherwise in the last bit, for one of the two networks.
    same = assert_same if TorchVersion(torch.__version__) >= '2.2' else torch.testing.assert_close
    for size in ((2, 16), (2, 32), (1, 16), (3, 64), (1, 32, 64), (4, 16), (2, 8, 32)):
        x = inputs(*size)
        same(fast(x), plain(x))
    # One for a batch of 1, and one for all other batches; of a whole chunk also for the first size and for all others.
    assert bool(compiling._programs) == (network is Residual and compiling.has_regions(
        fast.loop.chunk(2, fast.loop.shapes(fast.bind(inputs())))[0].graph_module))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] <= (2 * len(compiling._programs) or 4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs oneDNN')
@pytest.mark.skipif(shutil.which('c++') is None and shutil.which('g++') is None, reason='needs a C++ compiler')
def test_compiled_convolutions_have_their_weights_packed_once():
    # Otherwise oneDNN does it at every call, which takes longer than the neurons.
    from torch._inductor.utils import run_and_get_code
    _, fast = both(Functional, inputs(), compile=True)
    torch._dynamo.reset()
    code = '\n'.join(run_and_get_code(fast, inputs())[1])
    assert 'mkldnn._convolution_pointwise' in code and 'extern_kernels.convolution(' not in code
    convolution = torch.nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2).requires_grad_(False)
    packed, x = compiling.PackedConvolution(convolution), torch.randn(2, 4, 9, 9).contiguous(
        memory_format=torch.channels_last)
    assert packed(x).is_contiguous(memory_format=torch.channels_last) and packed._packed[1].is_mkldnn
    torch.testing.assert_close(packed(x), convolution(x))
    assert packed(x[:0]).shape == convolution(x[:0]).shape


def test_bfloat16_rounds_currents_not_membranes():
    plain, half = both(Residual, inputs(), dtype='bfloat16')
    chunk, _ = half.loop.chunk(2, half.loop.shapes(half.bind(inputs())))
    assert {module.weight.dtype for module in chunk.graph_module.children()
            if hasattr(module, 'weight')} == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in half.network.state_dict().values()
               if value.is_floating_point()), 'what is saved and calibrated stays as it is'
    torch.testing.assert_close(half(inputs()), plain(inputs()), rtol=.05, atol=.05)
    with pytest.raises(ValueError, match='dtype must be one of'):
        mmsnn.convert(Residual(), T, dtype='float16')


def test_a_part_that_the_compiler_fails_on_runs_plainly(caplog):
    def failing(module, inputs):
        raise KeyError('buf0')

    layer = torch.nn.Linear(3, 2)
    run = compiling._OrPlain(torch.compile(layer, backend=failing), layer)
    x = torch.randn(4, 3)
    for _ in range(2):
        torch.testing.assert_close(run(x), layer(x), rtol=0, atol=0)
    assert caplog.text.count('failed on a part of the simulation') == 1 and "KeyError: 'buf0'" in caplog.text


def test_linear_layers_on_one_thread_compiled_and_counted():
    # Where torch 2.14 has one thread it fails to write the loop of the neurons behind a linear layer that are counted.
    torch.manual_seed(0)
    ann = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 64), torch.nn.ReLU(),
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)).eval()
    x, costs, outputs, threads = torch.randn(64, 3, 8, 8), [], [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for compile in (False, True):
            snn = mmsnn.convert(ann, 4, compile=compile)
            mmsnn.calibrate(snn, [x], 'signed', progress=False)
            with mmsnn.CostCounter(snn) as counter:
                outputs.append(snn(x))
            costs.append(counter.cost.spikes)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)
    assert costs[0] == pytest.approx(costs[1], rel=1e-2)


def test_without_a_compiler_simulation_goes_on_and_says_so(monkeypatch, caplog):
    plain, fast = both(Residual, inputs(), compile=True)
    monkeypatch.setenv('CXX', 'no-such-compiler')
    assert_same(fast(inputs()), plain(inputs()))
    assert "'no-such-compiler' is not to be found" in caplog.text


class Pooled(nn.Module):
    """A residual sum that is pooled or enlarged between convolutions."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), between

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.b(torch.relu(self.between(y + self.b(y))))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs oneDNN')
@pytest.mark.parametrize('one, other', [
    (nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    (nn.Upsample(scale_factor=2, mode='bilinear'), nn.Upsample(scale_factor=2, mode='bilinear', align_corners=True))],
    ids=['pooling', 'upsampling'])
def test_programs_are_shared_by_what_computes_the_same_alone(one, other):
    def programs(between):
        ann, x = Pooled(between).eval(), inputs()
        snn = mmsnn.convert(ann, 2)
        mmsnn.calibrate(snn, [x], progress=False)
        graph = snn.loop.chunk(2, snn.loop.shapes(snn.bind(x)))[0].graph_module
        if not compiling.has_regions(graph):
            pytest.skip('this torch compiles a chunk as a whole')
        return {id(part) for part in compiling.in_regions(graph).children() if isinstance(part, compiling._Program)}

    assert repr(one) == repr(other) and programs(one) == programs(copy.deepcopy(one))
    assert programs(one) != programs(other)
