"""What the benchmark compares with computes the same; its commands run."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

import mmsnn
from mmsnn.commands import benchmark as command
from mmsnn.experiments.benchmark import MEASUREMENTS
from mmsnn.experiments.candidates import DETECTORS, FAST, NETWORKS, build, convert, naive, published_light

from networks import Residual, randomise_norms

TOOLS = Path(__file__).parent.parent / 'tools'


def converted(pipeline, x):
    torch.manual_seed(0)
    ann = randomise_norms(Residual()).eval()
    ann.pool = torch.nn.AvgPool2d(2)  # max pooling of spikes is more than one operation a step
    snn = mmsnn.convert(ann, 8)
    mmsnn.calibrate(snn, [x], pipeline, progress=False)
    return snn


@pytest.mark.parametrize('pipeline', ['light', 'signed'])
def test_simulating_the_whole_network_at_every_step_gives_the_same(pipeline):
    x = torch.randn(2, 3, 16, 16)
    snn = converted(pipeline, x)
    (output,) = naive(snn, x)
    torch.testing.assert_close(output, snn(x))


def test_simulating_the_whole_network_for_every_layer_calibrates_the_same():
    x = torch.randn(2, 3, 16, 16)
    published, expected = converted('none', x), converted('light', x)
    published_light(published, [x])
    for name, neuron in expected.neurons.items():
        torch.testing.assert_close(published.neurons[name].bias, neuron.bias)


def test_a_whole_detector_spikes_as_in_its_config():
    """Every layer of weights but the stem reads spikes, and the outputs are the head's of every level."""
    snn = convert(build('retinanet', 'cpu'), 2, 'differential')
    assert not snn.graded and snn.coding == 'differential'
    with mmsnn.CostCounter(snn) as counter:
        _, (scores, _) = snn(torch.randn(1, 3, 64, 64))
    assert [score.shape[1:] for score in scores] == [(720, size, size) for size in (8, 4, 2, 1, 1)]
    assert counter.cost.graded_operations == 0 and counter.cost.analog_macs < .05 * counter.cost.ann_macs


@pytest.mark.parametrize('arguments', [
    ['simulation', '--candidates', 'plain', 'naive', 'spikingjelly', '--repeats', '1'],
    ['memory', '--candidates', 'plain'],
    ['calibration', '--images', '1', '--published', '--pipeline', 'light'],
    ['shapes', '--candidates', 'plain'],
    ['breakdown', '--candidates', 'plain'],
    ['events', '--repeats', '1'],
], ids=lambda arguments: arguments[0])
def test_commands_run(tmp_path, arguments):
    out = tmp_path / 'rows.json'
    if arguments[0] == 'shapes':
        import mmcv
        for size in (40, 48):
            mmcv.imwrite(torch.randint(256, (size, 64, 3)).numpy().astype('uint8'), str(tmp_path / f'{size}.png'))
        arguments = [*arguments, '--folder', str(tmp_path)]
    subprocess.run([sys.executable, str(TOOLS / 'benchmark.py'), *arguments, '--networks', 'resnet18', '--size', '64',
                    '64', '--time-steps', '2', '--json', str(out)], check=True, timeout=300)
    rows = json.loads(out.read_text())['rows']
    assert rows and all(row.get('network', 'resnet18') == 'resnet18' for row in rows)


def test_the_command_offers_what_can_be_measured():
    assert set(command.WHAT) == set(MEASUREMENTS) and set(command.NETWORKS) == {*NETWORKS, *DETECTORS}
    assert set(command.CANDIDATES) == {*FAST, 'naive', 'spikingjelly'}
