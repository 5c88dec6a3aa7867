"""A kind of neuron that the package does not have is one class: everything else finds it there."""
from dataclasses import dataclass, replace

import pytest
import torch

import mmsnn
from mmsnn.neurons.model import NEURONS, NeuronModel

from networks import Residual, Small, randomise_norms, simulate

T = 8


@dataclass(frozen=True)
class Double(NeuronModel):
    """Emits twice its threshold when the potential reaches that: ``u = v + c + b; s = 2 h if u >= 2 h; v = u - s``."""

    highest = 2
    peak = 2.

    def step(self, current, bias, state, threshold, time_steps):
        potential = state[0] + current + bias
        spikes = torch.where(potential >= 2 * threshold, 2 * threshold, 0.)
        return spikes, (potential - spikes,)

    def rate(self, current, threshold, time_steps, potential):
        return 2 * mmsnn.firing_rate(current / 2, threshold, time_steps, potential / 2)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(NEURONS, 'double', Double)


def calibrated(network, x, pipeline='light', **options):
    snn = mmsnn.convert(randomise_norms(network).eval(), T, **options)
    report = mmsnn.calibrate(snn, [x], pipeline, neuron='double', progress=False)
    return snn, report


def test_it_converts_and_calibrates():
    x = torch.randn(4, 3, 16, 16)
    snn, report = calibrated(Residual(), x)
    assert len(report) == len(snn.neurons) and all(row.error_after < .2 for row in report)
    for name, layer in simulate(snn, x)[1].items():
        number = layer['spikes'] / snn.neurons[name].threshold.view(-1, 1, 1)
        assert set(number.round().unique().tolist()) == {0., 2.}, name
    ann = Small()
    (plain, _), (light, _) = (calibrated(ann, x, pipeline) for pipeline in ('none', 'light'))
    error = (plain.network(x) - plain(x)).mean((0, 2, 3))
    before, after = (next(iter(snn.neurons.values())).bias for snn in (plain, light))
    torch.testing.assert_close(after, before + error)


def test_its_thresholds_and_its_closed_form_are_its_own():
    # A stem alone: the current is constant, and the closed form is exact.
    x = torch.randn(4, 3, 16, 16)
    snn, _ = calibrated(Small(), x, 'none')
    neuron, = snn.neurons.values()
    torch.testing.assert_close(snn(x), snn.quantised(x))
    activations = snn.network(x)
    largest = activations.movedim(1, 0).flatten(1).amax(1)
    assert (2 * neuron.threshold <= largest + 1e-6).all() and (2 * neuron.threshold > .5 * largest).all()


def test_it_is_counted():
    x = torch.randn(4, 3, 16, 16)
    snn, _ = calibrated(Residual(), x)
    with mmsnn.CostCounter(snn) as counter:
        snn(x)
    for name, layer in simulate(snn, x)[1].items():
        number = layer['spikes'] / snn.neurons[name].threshold.view(-1, 1, 1)
        assert counter.cost.spikes[name] == number.round().sum().item() > 0, 'one of two thresholds counts as two'


def test_it_is_saved_and_loaded():
    x = torch.randn(4, 3, 16, 16)
    ann = randomise_norms(Residual()).eval()
    snn = mmsnn.convert(ann, T)
    mmsnn.calibrate(snn, [x], 'light', neuron='double', progress=False)
    again = mmsnn.convert(ann, T)
    again.load_state_dict(snn.state_dict())
    assert isinstance(next(iter(again.neurons.values())).rule, Double) and torch.equal(again(x), snn(x))


def test_it_is_compiled():
    x = torch.randn(2, 3, 16, 16)
    ann = randomise_norms(Residual()).eval()
    snn, fast = mmsnn.convert(ann, T), mmsnn.convert(ann, T, compile=True)
    mmsnn.calibrate(snn, [x], 'light', neuron='double', progress=False)
    fast.load_state_dict(snn.state_dict())
    torch.testing.assert_close(fast(x), snn(x), rtol=.05, atol=.05)  # sums in another order move single spikes


def test_it_is_exported(tmp_path):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    from mmsnn.export.formats import export
    x = torch.randn(2, 3, 16, 16)
    snn, _ = calibrated(Residual(), x)
    export(snn, x, tmp_path / 'double.onnx', 'onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'double.onnx', providers=['CPUExecutionProvider'])
    output, = session.run(None, {'input': x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), snn(x), rtol=.05, atol=.05)


def test_what_has_no_counterpart_in_nir_is_refused(tmp_path):
    pytest.importorskip('nir')
    from mmsnn.export.formats import export
    from mmsnn.export.nir_graph import ExportError
    snn, _ = calibrated(Small(), torch.randn(2, 3, 16, 16))
    with pytest.raises(ExportError, match="neurons of kind Double"):
        export(snn, torch.randn(1, 3, 16, 16), tmp_path / 'double.nir', 'nir')


def test_an_unknown_kind_is_refused_by_name():
    snn = mmsnn.convert(Small(), T)
    with pytest.raises(ValueError, match="neuron must be one of .*'integrate-and-fire'.*'double'.*, not 'triple'"):
        mmsnn.calibrate(snn, [torch.randn(1, 3, 8, 8)], 'none', neuron='triple', progress=False)


@dataclass(frozen=True)
class Late(Double):
    """The same, silent in the first two steps."""

    silent: torch.Tensor | float = 0.

    def at(self, step, time_steps):
        return replace(self, silent=1. * (step < 2))

    def step(self, current, bias, state, threshold, time_steps):
        spikes, (potential,) = super().step(current, bias, state, threshold, time_steps)
        fired = spikes * (1 - self.silent)
        return fired, (potential + (spikes - fired),)


def test_it_may_do_something_else_at_each_step(monkeypatch):
    monkeypatch.setitem(NEURONS, 'double', Late)
    x, ann = torch.randn(4, 3, 16, 16), Small()
    (plain, _), (light, _) = (calibrated(ann, x, pipeline) for pipeline in ('none', 'light'))
    error = (plain.network(x) - plain(x)).mean((0, 2, 3))
    before, after = (next(iter(snn.neurons.values())).bias for snn in (plain, light))
    torch.testing.assert_close(after, before + error)
