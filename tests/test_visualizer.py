"""What the visualizer, and so TensorBoard, gets of a calibration and a test: scalars by layer, read from its files."""
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.runner import Runner

from mmsnn.openmmlab.hooks import plain_config

sys.path.insert(0, str(Path(__file__).parent))

from test_tools import CHECKPOINT, config_file, digits  # noqa: F401


@pytest.fixture(scope='module')
def tested(tmp_path_factory, digits):  # noqa: F811
    """A test run with the backends given; its runner."""
    backends = [dict(type='LocalVisBackend')]
    try:
        import tensorboard  # noqa: F401
        backends.append(dict(type='TensorboardVisBackend'))
    except ImportError:
        pass
    cfg = Config.fromfile(config_file(tmp_path_factory.mktemp('visualizer'), digits, 'light', 4, dict(num_images=2)))
    cfg.visualizer = dict(type='DetLocalVisualizer', vis_backends=backends, name='test_visualizer')
    cfg.test_evaluator = [cfg.test_evaluator, dict(type='mmsnn.SpikeMetric'), dict(type='mmsnn.AgreementMetric')]
    cfg.load_from = str(CHECKPOINT)
    runner = Runner.from_cfg(cfg)
    runner.metrics = runner.test()
    return runner


def expected(runner):
    """Every curve as the hook's report and the metric have it, layer by layer."""
    hook = next(hook for hook in runner.hooks if hasattr(hook, 'reports'))
    (report,) = hook.reports.values()
    layers = runner.test_loop.evaluator.metrics[1].layers
    assert [row.name for row in report] == list(layers) and len(report) == 49
    curves = {f'calibration/backbone/{key}': [getattr(row, key) for row in report]
              for key in ('threshold', 'error_before', 'error_after')}
    return curves | {f'spike/{key}': [layer[key] for layer in layers.values()]
                     for key in ('firing_rate', 'synaptic_operations')}


def test_local_backend(tested):
    (path,) = Path(tested.log_dir).glob('vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for tag, values in expected(tested).items():
        found = {line['step']: line[tag] for line in lines if tag in line}
        assert list(found) == list(range(49))
        assert list(found.values()) == pytest.approx(values)


def test_tensorboard(tested):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    tested.visualizer.close()
    events = EventAccumulator(str(Path(tested.log_dir) / 'vis_data'))
    events.Reload()
    for tag, values in expected(tested).items():
        points = events.Scalars(tag)
        assert [point.step for point in points] == list(range(49))
        assert [point.value for point in points] == pytest.approx(values, rel=1e-5)


def test_layers_add_up_to_the_whole(tested):
    layers = tested.test_loop.evaluator.metrics[1].layers.values()
    assert sum(layer['synaptic_operations'] for layer in layers) == pytest.approx(
        tested.metrics['spike/synaptic_operations'])
    rates = [layer['firing_rate'] for layer in layers]
    assert min(rates) < tested.metrics['spike/firing_rate'] < max(rates) <= 1


def test_metrics_of_spiking_models_are_left_out_for_the_ann(tested):
    (metric,) = plain_config(tested.cfg).test_evaluator
    assert metric['type'] == 'CocoMetric'
    assert 'test_evaluator' not in plain_config(Config(dict(model=dict(type='X'))))
