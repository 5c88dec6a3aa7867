"""Calibration by what neurons emit in closed form: the same as written out, at a cost that does not grow with T."""
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mmsnn
from mmsnn.neurons.model import NEURONS
from mmsnn.neurons.pipelines import PIPELINES, Pipeline, make_pipeline
from mmsnn.neurons.thresholds import RULES

from networks import Residual, randomise_norms

ROOT = Path(__file__).parent.parent
SIMULATES = {'light', 'advanced', 'potential', 'bursts', 'spike-norm', 'rmp', 'tsc'}
CHOOSES_THRESHOLDS = {'none', 'maxact', 'percentile'}


class Plain(nn.Module):
    """Weights and biases that are multiples of an eighth: with such images, sums of few terms are exact."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3, bias=False)
        for parameter in self.parameters():
            parameter.data = eighths(parameter.shape, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return torch.relu(self.c(torch.relu(self.b(x)) + x[..., 1:-1, 1:-1]))


def eighths(shape, most=8):
    return torch.randint(-most, most + 1, shape) / 8


@pytest.fixture
def powers(monkeypatch):
    """A rule for thresholds that are powers of two, so that rates are multiples of one."""
    monkeypatch.setitem(RULES, 'powers', lambda histogram, time_steps, rounding:
                        torch.exp2(torch.ceil(torch.log2(histogram.maximum.clamp(min=1e-9)))))


class Convolutions(TorchDispatchMode):
    """Counts the images that convolutions see."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.images += len(args[0])
        return function(*args, **(kwargs or {}))


def converted(ann, time_steps, data, pipeline, **options):
    snn = mmsnn.convert(ann, time_steps)
    return snn, mmsnn.calibrate(snn, data, pipeline, progress=False, **options)


@pytest.mark.parametrize('time_steps', [2, 8])
@pytest.mark.parametrize('choices', [dict(), dict(rounds=2), dict(bias=True)], ids=['potential', 'twice', 'and bias'])
def test_signed_equals_the_equations_written_out(powers, time_steps, choices):
    data, ann = [eighths((2, 3, 16, 16)) for _ in range(3)], Plain()
    snn, report = converted(ann, time_steps, data, 'signed', threshold='powers', **choices)
    x, own = torch.cat(data), snn.neurons
    rates, activations = [], []
    with torch.no_grad():
        def currents(values):
            yield F.conv2d(x.double(), ann.a.weight.double(), ann.a.bias.double(), padding=1)
            yield F.conv2d(values[0], ann.b.weight.double(), ann.b.bias.double())
            yield F.conv2d(values[1] + values[0][..., 1:-1, 1:-1], ann.c.weight.double())

        streams = zip(own.values(), currents(activations), currents(rates), report)
        for neuron, target, current, row in streams:
            target = target.relu()
            h = torch.exp2(torch.ceil(torch.log2(target.amax((0, 2, 3))))).float()[:, None, None] / 2  # two a step
            potential, bias = h / 2, torch.zeros_like(h)

            def rate():
                level = (time_steps * (current.float() + bias) + potential) / h
                return (level.floor().clamp(0, 2 * time_steps) * (h / time_steps)).double()

            assert row.error_before == pytest.approx(float((target - rate()).square().sum() / target.square().sum()))
            for _ in range(choices.get('rounds', 1)):
                potential = potential + time_steps * (target - rate()).mean((0, 2, 3)).float()[:, None, None]
                if choices.get('bias'):
                    bias = bias + (target - rate()).mean((0, 2, 3)).float()[:, None, None]
            assert row.error_after == pytest.approx(float((target - rate()).square().sum() / target.square().sum()))
            assert torch.equal(neuron.threshold, h.flatten())
            assert torch.equal(neuron.initial_potential, potential.flatten())
            assert torch.equal(neuron.bias, bias.flatten())
            rates.append(rate())
            activations.append(target)


@pytest.mark.parametrize('pipeline', ['signed', 'differential'])
def test_the_cost_is_two_passes_of_the_network_at_any_t(pipeline):
    data, ann = [torch.randn(2, 3, 16, 16) for _ in range(3)], randomise_norms(Residual()).eval()
    with Convolutions() as passed, torch.no_grad():
        for batch in data:
            ann(batch)
    for time_steps in (1, 8, 64):
        for budget in (2 ** 30, 0):  # without room each correction computes the currents again
            with Convolutions() as counted:
                converted(ann, time_steps, data, pipeline, memory_budget=budget)
            assert counted.images == (2 if budget else 3) * passed.images


def test_a_simulation_runs_convolutions_once_for_all_corrections():
    data, ann = [torch.randn(2, 3, 16, 16) for _ in range(3)], randomise_norms(Residual()).eval()
    images = {}
    for rounds in (1, 3):
        with Convolutions() as counted:
            converted(ann, 8, data, 'light', rounds=rounds)
        images[rounds] = counted.images
    with Convolutions() as counted:
        converted(ann, 8, data, 'light', memory_budget=0)
    # Two layers of three are behind neurons; without room they are simulated twice, and so is, always, the stem.
    assert images[3] - images[1] == 2 * 6 and counted.images - images[1] == 2 * 8 * 6


@pytest.mark.parametrize('pipeline, options', [
    ('light', {}), ('light', dict(rounds=2)), ('light', dict(bias_per_step=True)), ('signed', {}), ('bursts', {}),
    ('spike-norm', {}), ('differential', {}),
    ('advanced', dict(iterations=10, learning_rate=1e-2)),
    ('signed', dict(weights=True, blockwise=True, iterations=10, learning_rate=1e-2, tune=('bias', 'threshold')))])
def test_room_in_memory_changes_no_bit(pipeline, options, tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    data, ann = [torch.randn(2, 3, 16, 16) for _ in range(3)], randomise_norms(Residual()).eval()
    states = [converted(ann, 8, data, pipeline, memory_budget=budget, **options) for budget in (2 ** 30, 2 ** 17, 0)]
    for snn, report in states[1:]:
        assert report == states[0][1]
        for key, value in states[0][0].state_dict().items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, snn.state_dict()[key]), key


def test_histograms_of_the_walk_are_those_of_a_pass():
    data, ann = [torch.randn(2, 3, 16, 16) for _ in range(3)], randomise_norms(Residual()).eval()
    for pipeline in ('light', 'signed', 'differential'):
        alone, _ = converted(ann, 8, data, pipeline)
        given, _ = converted(ann, 8, data, pipeline, histograms=mmsnn.observe(mmsnn.convert(ann, 8), data))
        for key, value in alone.state_dict().items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, given.state_dict()[key]), key


def test_which_pipelines_simulate():
    assert {name for name, pipeline in PIPELINES.items() if pipeline.simulates} == SIMULATES
    assert {name for name, pipeline in PIPELINES.items() if not pipeline.walks} == CHOOSES_THRESHOLDS
    # What only a simulation can tell is simulated.
    assert make_pipeline('signed', bias=True, bias_per_step=True).simulates
    assert make_pipeline('signed', threshold='current').simulates
    assert make_pipeline('light', signed=True).walks and not make_pipeline('light', signed=True).simulates


def test_a_neuron_states_that_it_has_a_closed_form(monkeypatch):
    class Rounding(NEURONS['integrate-and-fire']):
        closed_form = True

    data, ann = [torch.randn(2, 3, 16, 16)], randomise_norms(Residual()).eval()
    with Convolutions() as simulated:
        converted(ann, 8, data, 'light')
    monkeypatch.setitem(NEURONS, 'rounding', Rounding)
    with Convolutions() as counted:
        converted(ann, 8, data, 'light', neuron='rounding')
    assert counted.images == 2 * 3 * 2 < simulated.images


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The backbone of the RetinaNet that was trained on digits, and images of these."""
    pytest.importorskip('mmdet')
    import mmcv
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.runner import load_checkpoint

    sys.path.insert(0, str(ROOT / 'tools'))
    from make_digits import make_digits
    register_all_modules()
    folder = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(folder, train=4, val=1, test=2)
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / 'retinanet_r50-thin_fpn_digits.py')
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(ROOT / 'checkpoints' / 'retinanet_r50-thin_fpn_digits.pth'), map_location='cpu')
    images = {part: [torch.from_numpy(mmcv.imread(str(file))).permute(2, 0, 1)[None, :, :96, :96].float()
                     for file in sorted((folder / part).glob('*'))] for part in ('train', 'test')}
    ready = {part: [model.data_preprocessor(dict(inputs=[image[0]], data_samples=None))['inputs'] for image in found]
             for part, found in images.items()}
    return model.backbone, ready['train'], ready['test']


def test_the_error_at_eight_steps_is_that_after_simulating(trained, monkeypatch):
    ann, data, held_out = trained
    errors = []
    for closed in (True, False):
        if not closed:
            monkeypatch.setattr(Pipeline, 'simulates', property(lambda pipeline: True))
        snn, _ = converted(ann, 8, data, 'signed')
        with torch.no_grad():
            pairs = [(a, b) for x in held_out for a, b in zip(ann(x), snn(x))]
        errors.append(sum(float((a - b).square().sum() / a.square().sum()) for a, b in pairs) / len(pairs))
    assert 0 < errors[0] <= 1.1 * errors[1] < .5, errors
