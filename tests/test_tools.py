"""The command-line tools on a trained detector and real digits, as a user runs them."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner

from mmsnn.openmmlab.hooks import CalibrationHook, find_pipeline, replace_pipeline

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
STEM = 'retinanet_r50-thin_fpn'
CHECKPOINT = ROOT / 'checkpoints' / f'{STEM}_digits.pth'


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    from make_digits import make_digits
    folder = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(folder, train=8, val=1, test=4)
    return folder


def config_file(folder, digits, pipeline, time_steps=8, hook=None, **changes):
    """Write the repository's config with small data, as a user would derive it."""
    path = folder / f'{pipeline}-{time_steps}.py'
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / f'{STEM}_snn-{pipeline}_digits.py')
    cfg.custom_hooks[0].update(dict(dict(num_images=4), **(hook or {})))
    cfg.model.backbone.time_steps = time_steps
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{digits}/'
        loader.update(num_workers=0, persistent_workers=False)
    cfg.test_evaluator.ann_file = f'{digits}/test.json'
    cfg.work_dir = str(folder / 'work')
    cfg.merge_from_dict(changes)
    cfg.dump(path)
    return path


def run_tool(name, *arguments, check=True, processes=1):
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
    result = subprocess.run([sys.executable, *launcher, str(ROOT / 'tools' / f'{name}.py'), *map(str, arguments)],
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env=dict(os.environ, OMP_NUM_THREADS='1'))
    if check:
        assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


def scores(output):
    return re.findall(r'bbox_mAP_copypaste: ([\d. -]+)', output)


def test_calibrated_checkpoint_gives_what_calibrating_in_the_test_run_gives(tmp_path, digits):
    config, calibrated = config_file(tmp_path, digits, 'light'), tmp_path / 'out' / 'light.pth'
    in_test = run_tool('test', config, CHECKPOINT)
    assert 'calibrating backbone' in in_test and 'error after' in in_test and len(scores(in_test)) == 1
    run_tool('calibrate', config, CHECKPOINT, '-o', calibrated)
    from_file = run_tool('test', config, calibrated)
    assert 'using the calibration of the checkpoint' in from_file and 'calibrating backbone' not in from_file
    assert scores(from_file) == scores(in_test)
    assert float(scores(from_file)[0].split()[0]) > .3, 'a trained detector, converted, still detects'
    assert [path.name for path in calibrated.parent.iterdir()] == ['light.pth']
    stored = torch.load(calibrated, weights_only=True)
    assert stored['meta']['dataset_meta']['classes'][9] == '9'

    # The same detections without a runner, from the file, and from a model calibrated in this process.
    images = sorted(map(str, (digits / 'test').iterdir()))
    detector = init_detector(str(config), str(calibrated), device='cpu')
    runner = Runner.from_cfg(Config.fromfile(config))
    runner.load_checkpoint(str(CHECKPOINT))
    runner.call_hook('before_test')
    runner.model.cfg, runner.model.dataset_meta = runner.cfg, detector.dataset_meta
    runner.model.eval()
    for image in images:
        one, other = (inference_detector(model, image).pred_instances for model in (detector, runner.model))
        assert len(one) and torch.equal(one.bboxes, other.bboxes) and torch.equal(one.scores, other.scores)
    # A list of images goes through one by one, in the same way.
    for single, listed in zip(images, inference_detector(detector, images)):
        assert torch.equal(inference_detector(detector, single).pred_instances.scores, listed.pred_instances.scores)


def test_two_processes_give_what_one_gives(tmp_path, digits):
    config = config_file(tmp_path, digits, 'signed', time_steps=4)
    run_tool('calibrate', config, CHECKPOINT, '-o', tmp_path / 'one.pth')
    run_tool('calibrate', config, CHECKPOINT, '-o', tmp_path / 'two.pth', '--launcher', 'pytorch', processes=2)
    one, two = (torch.load(tmp_path / f'{name}.pth', weights_only=True)['state_dict'] for name in ('one', 'two'))
    assert one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())
    alone = run_tool('test', config, CHECKPOINT)
    shared = run_tool('test', config, CHECKPOINT, '--launcher', 'pytorch', processes=2)
    assert scores(alone) == scores(shared) and float(scores(alone)[0].split()[0]) > .3


def test_options_change_time_steps_and_pipeline(tmp_path, digits):
    output = run_tool('test', config_file(tmp_path, digits, 'light'), CHECKPOINT, '--cfg-options',
                      'model.backbone.time_steps=4', 'custom_hooks.0.pipeline=none')
    assert "pipeline 'none', T = 4" in output


def test_ann_checkpoint_is_untouched_when_calibration_fails(tmp_path, digits):
    out = tmp_path / 'old.pth'
    out.write_bytes(b'what was here before')
    output = run_tool('calibrate', config_file(tmp_path, digits, 'light', hook=dict(num_images=9)), CHECKPOINT, '-o',
                      out, check=False)
    assert 'calibration asks for 9 images, but its data set has 8' in output
    assert out.read_bytes() == b'what was here before' and len(list(tmp_path.glob('*old*'))) == 1


@pytest.mark.parametrize('changes, message', [
    (dict(custom_hooks=[dict(type='mmsnn.CalibrationHook', pipeline='heavy', num_images=1)]), 'pipeline must be'),
    ({'custom_hooks': [dict(type='EMAHook'), dict(type='mmsnn.CalibrationHook', num_images=1)]}, 'EMAHook swaps'),
    ({'model.backbone.time_steps': 0}, 'time_steps must be an integer of at least 1'),
], ids=['pipeline', 'ema', 'time-steps'])
def test_wrong_configs_say_what_is_wrong(tmp_path, digits, changes, message):
    cfg = Config.fromfile(config_file(tmp_path, digits, 'light', **changes))
    cfg.load_from = str(CHECKPOINT)
    with pytest.raises((ValueError, RuntimeError), match=message):
        Runner.from_cfg(cfg).test()


def test_other_pipeline_or_time_steps_than_the_checkpoint_are_refused(tmp_path, digits):
    light, out = config_file(tmp_path, digits, 'light'), tmp_path / 'light.pth'
    run_tool('calibrate', light, CHECKPOINT, '-o', out)
    for changes, message in (({'custom_hooks.0.pipeline': 'none'}, "was calibrated with pipeline='light'"),
                             ({'model.backbone.time_steps': 4}, 'calibrated for time_steps=8')):
        cfg = Config.fromfile(light)
        cfg.merge_from_dict(dict(changes, load_from=str(out)))
        with pytest.raises(RuntimeError, match=message):
            Runner.from_cfg(cfg).test()


def test_model_without_spiking_backbone_is_refused(tmp_path, digits):
    cfg = Config.fromfile(config_file(tmp_path, digits, 'none'))
    cfg.model.backbone = cfg.model.backbone.backbone
    cfg.load_from = str(CHECKPOINT)
    with pytest.raises(RuntimeError, match='wrap the backbone'):
        Runner.from_cfg(cfg).test()


def test_calibration_images_are_drawn_by_seed_and_prepared_as_in_testing(tmp_path, digits):
    cfg = Config.fromfile(config_file(tmp_path, digits, 'none'))
    model = Runner.from_cfg(cfg).model
    first, again, other = (list(CalibrationHook(num_images=4, seed=seed).batches(model, cfg)) for seed in (0, 0, 1))
    assert [image.shape[0] for image in first] == [1] * 4
    assert len({image.shape for image in first}) > 1, 'sizes vary, and nothing is padded to the largest'
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other))
    together = list(CalibrationHook(num_images=4, batch_size=3).batches(model, cfg))
    assert [len(batch) for batch in together] == [3, 1]


def test_pipeline_is_found_and_replaced_inside_wrappers():
    dataset = Config(dict(d=dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[
        dict(type='CocoDataset', pipeline=['a']), dict(type='CocoDataset', pipeline=['b'])])))).d
    assert find_pipeline(dataset) == ['a']
    replace_pipeline(dataset, ['test'])
    assert [d.pipeline for d in dataset.dataset.datasets] == [['test'], ['test']]


def test_tools_explain_a_missing_config():
    assert 'does not exist' in run_tool('test', 'nowhere.py', 'x.pth', check=False)
    assert 'usage' in run_tool('test', check=False)


def test_demo_writes_table_and_figure_and_resumes(tmp_path):
    arguments = ['--time-steps', 2, '--pipelines', 'none', '--detectors', 'RetinaNet', '--work-dir', tmp_path]
    first = run_tool('demo', *arguments)
    rows = json.loads((tmp_path / 'table.json').read_text())
    assert [(row['detector'], row['pipeline'], row['time_steps']) for row in rows] == [
        ('RetinaNet', 'ann', None), ('RetinaNet', 'none', 2)]
    assert rows[0]['bbox_mAP'] > .5 and (tmp_path / 'map.png').stat().st_size > 1000
    assert '2 of 2 rows' in first and 'Baseline (`none`)' in first
    assert '0 of 2 rows' in run_tool('demo', *arguments)


def test_publishing_keeps_weights_and_class_names_only(tmp_path, trusted):
    from mmsnn.openmmlab.checkpoints import publish
    state = dict(weight=torch.randn(4, 4), bias=torch.randn(4), num_batches_tracked=torch.tensor(3))
    torch.save(dict(state_dict=state, optimizer=dict(lr=1.), meta=dict(
        dataset_meta=dict(classes=('a', 'b'), palette=[np.int64(1)]), epoch=3, cfg='a path')), tmp_path / 'in.pth')
    publish(tmp_path / 'in.pth', tmp_path / 'out' / 'published.pth')
    published = torch.load(tmp_path / 'out' / 'published.pth', weights_only=True)
    assert published['meta'] == dict(dataset_meta=dict(classes=['a', 'b'], palette=[1]), epoch=3)
    assert published.keys() == {'meta', 'state_dict'}
    torch.testing.assert_close(published['state_dict']['weight'].float(), state['weight'], rtol=1e-3, atol=1e-4)
    assert torch.equal(published['state_dict']['bias'], state['bias'])
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['published.pth']
    torch.save(dict(state_dict=dict(weight=torch.full((2, 2), 1e5))), tmp_path / 'large.pth')
    publish(tmp_path / 'large.pth', tmp_path / 'out' / 'large.pth')
    large = torch.load(tmp_path / 'out' / 'large.pth', weights_only=True)['state_dict']['weight']
    assert torch.equal(large, torch.full((2, 2), 1e5)), 'half precision would make infinity of it'


def test_sweep_of_a_detector_gives_what_testing_it_gives(tmp_path, digits):
    config = config_file(tmp_path, digits, 'light')
    output = run_tool('sweep', config, CHECKPOINT, '--time-steps', 8, '--pipelines', 'light', '--work-dir',
                      tmp_path / 'sweep')
    ann, light = json.loads((tmp_path / 'sweep' / 'rows.json').read_text())['rows']
    if ann['pipeline'] != 'ann':
        ann, light = light, ann
    assert 'coco/bbox_mAP (ANN: ' in output and ann['coco/bbox_mAP'] > .5
    cfg = Config.fromfile(config)
    cfg.test_evaluator = [cfg.test_evaluator, dict(type='mmsnn.SpikeMetric')]
    cfg.dump(config)
    tested = run_tool('test', config, CHECKPOINT)
    assert f'{light["coco/bbox_mAP"]:.4f}' == re.findall(r'coco/bbox_mAP: ([\d.]+)', tested)[-1]
    operations = float(re.findall(r'spike/synaptic_operations: ([\d.]+)', tested)[-1])
    assert operations == pytest.approx(light['synaptic_operations'], rel=1e-6)
    assert 0 < light['spikes_per_neuron'] < 8 and light['analog_macs'] < light['ann_macs']


def test_images_without_data_calibrate(tmp_path, digits):
    config, images = config_file(tmp_path, digits, 'light'), tmp_path / 'images.pth'
    run_tool('synthesise', config, CHECKPOINT, '-o', images, '--size', 96, 128, '--num-images', 4, '--batch-size', 2,
             '--iterations', 3)
    assert [batch.shape for batch in torch.load(images, weights_only=True)] == [(2, 3, 96, 128)] * 2
    output = run_tool('test', config, CHECKPOINT, '--cfg-options', f'custom_hooks.0.images={images}')
    assert 'T = 8, 4 images' in output and len(scores(output)) == 1


def test_exported_backbone_gives_what_the_detector_computes(tmp_path, digits):
    for package in ('onnx', 'onnxscript', 'onnxruntime', 'nir'):
        pytest.importorskip(package)
    from mmsnn.export.checking import run_onnx
    config, calibrated, out = config_file(tmp_path, digits, 'light'), tmp_path / 'light.pth', tmp_path / 'out.onnx'
    run_tool('calibrate', config, CHECKPOINT, '-o', calibrated)
    output = run_tool('export', config, calibrated, '-o', out, '--format', 'onnx', '--size', 64, 96)
    assert 'using the calibration of the checkpoint' in output and 'for images of 64 x 96 pixels, T = 8' in output
    backbone = init_detector(str(config), str(calibrated), device='cpu').backbone
    x = torch.randn(2, 3, 64, 96)
    for value, own in zip(run_onnx(out, x), backbone(x), strict=True):
        # Near a threshold, rounding decides whether a spike comes at this step.
        assert (value - own).abs().mean() < .01 * own.abs().mean()
    refusal = run_tool('export', config, calibrated, '-o', tmp_path / 'out.nir', '--format', 'nir', '--size', 64, 96,
                       check=False)
    assert 'maxpool (MaxPool2d): NIR has no max pooling' in refusal and not (tmp_path / 'out.nir').exists()
