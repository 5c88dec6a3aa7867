"""On a GPU: what simulation, calibration and the compiled program give on the CPU. Skipped where there is none."""
import copy

import pytest
import torch
from test_engine import RULES, assert_same, eager, exact, inputs, load

import mmsnn

from networks import Functional, Residual, leaves, randomise_norms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
T = 6


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Convolutions in float32 proper: torch's default on a GPU is TF32, whose factors have 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def calibrated(network, calibration, **fast):
    ann = randomise_norms(network()).eval()
    plain = mmsnn.convert(ann, T)
    mmsnn.calibrate(plain, [inputs()], progress=False, **calibration)
    exact(plain)
    other = mmsnn.convert(ann, T, **fast)
    load(other, plain)
    return plain, other.cuda()


@pytest.mark.parametrize('network', [Residual, Functional], ids=lambda n: n.__name__)
@pytest.mark.parametrize('calibration', RULES.values(), ids=RULES)
def test_simulation_equals_the_cpu(network, calibration):
    if 'position' in calibration.values() and network is Functional:
        pytest.skip('one of the two is enough')
    plain, other = calibrated(network, calibration)
    for x in (inputs(), inputs(3, 16)):
        for run in (other, eager(other)):
            for value, expected in zip(leaves(run(x.cuda())), leaves(plain(x)), strict=True):
                torch.testing.assert_close(value.cpu(), expected)


@pytest.mark.parametrize('calibration', [dict(pipeline=name) for name in ('none', 'light', 'signed')]
                         + [dict(pipeline='light', threshold=rule) for rule in ('max', 'percentile', 'balanced')]
                         + [dict(pipeline='light', bias_per_step=True), dict(pipeline='spike-norm')],
                         ids=lambda c: '-'.join(map(str, c.values())))
@pytest.mark.parametrize('memory_budget', [2 ** 30, 0], ids=['memory', 'disk'])
def test_calibration_equals_the_cpu(calibration, memory_budget):
    ann = exact_ann()
    here, there = mmsnn.convert(ann, T), mmsnn.convert(copy.deepcopy(ann).cuda(), T)
    batches = [inputs(), inputs(1, 24)]
    mmsnn.calibrate(here, batches, progress=False, **calibration)
    report = mmsnn.calibrate(there, batches, progress=False, memory_budget=memory_budget, **calibration)
    assert len(report) == len(here.neurons)
    for (name, value), expected in zip(there.state_dict().items(), here.state_dict().values(), strict=True):
        assert value.device == next(there.parameters()).device
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-3, atol=1e-3, msg=lambda text, n=name: f'{n}: {text}')


def exact_ann():
    ann = randomise_norms(Residual()).eval()
    with torch.no_grad():
        for value in ann.parameters():
            value.copy_((value * 64).round() / 64)
    return ann


def test_weights_are_calibrated_there_too():
    ann, reports = exact_ann(), []
    for device in ('cpu', 'cuda'):
        snn = mmsnn.convert(copy.deepcopy(ann).to(device), T)
        before = {name: value.clone() for name, value in snn.network.named_parameters()}
        reports.append(mmsnn.calibrate(snn, [inputs()] * 2, 'advanced', iterations=50, learning_rate=.1,
                                       progress=False))
        assert any(not torch.equal(value, before[name]) for name, value in snn.network.named_parameters())
    for there, here in zip(reports[1], reports[0], strict=True):
        assert there.error_after == pytest.approx(here.error_after, rel=.1)


@pytest.mark.parametrize('network', [Residual, Functional], ids=lambda n: n.__name__)
@pytest.mark.parametrize('calibration', [RULES['light'], RULES['signed'], RULES['a bias per step']],
                         ids=['light', 'signed', 'a bias per step'])
def test_compiled_simulation_equals_the_plain_loop_for_images_of_any_size(network, calibration):
    plain, fast = calibrated(network, calibration, compile=True)
    plain.cuda()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for batch, size in ((2, 16), (2, 32), (3, 64), (4, 16)):
        x = inputs(batch, size).cuda()
        for value, expected in zip(leaves(fast(x)), leaves(plain(x)), strict=True):
            torch.testing.assert_close(value, expected)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] <= 2


def test_bfloat16_and_cost():
    plain, half = calibrated(Residual, dict(pipeline='signed'), dtype='bfloat16', compile=True)
    plain.cuda()
    x = inputs().cuda()
    costs = []
    for snn in (plain, half):
        with mmsnn.CostCounter(snn) as counter:
            output = snn(x)
        costs.append(counter.cost.per_image())
    torch.testing.assert_close(output, plain(x), rtol=.05, atol=.05)
    assert costs[1]['synaptic_operations'] == pytest.approx(costs[0]['synaptic_operations'], rel=.05)


def test_state_moves_between_devices(tmp_path):
    plain, other = calibrated(Residual, dict(pipeline='signed'))
    torch.save(other.state_dict(), tmp_path / 'snn.pth')
    again = mmsnn.convert(randomise_norms(Residual()).eval(), T)
    again.load_state_dict(torch.load(tmp_path / 'snn.pth', map_location='cpu', weights_only=True))
    assert_same(again(inputs()), plain(inputs()))


def test_half_precision_of_the_ann_around_it_leaves_membranes_alone():
    plain, other = calibrated(Residual, dict(pipeline='signed'))
    with torch.autocast('cuda', dtype=torch.float16):
        value = other(inputs().cuda())
    torch.testing.assert_close(value.cpu(), plain(inputs()))
