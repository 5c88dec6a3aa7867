"""The CIFAR recipe and tools/sweep.py on real digits: one number, whichever way it is computed."""
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner.checkpoint import load_checkpoint

import mmsnn
from mmsnn.experiments.methods import choices_table, job_choices, job_options, parse_pipeline, readable, unused_options
from mmsnn.experiments.runs import AXES, Worker, fingerprint, shown_metric, store, stored_rows
from mmsnn.experiments.runs import test as run_test
from mmsnn.experiments.sweep import summarise
from mmsnn.openmmlab.checkpoints import find_state, rename

ROOT = Path(__file__).parent.parent
TIME_STEPS = 4


def run(name, *arguments):
    result = subprocess.run([sys.executable, str(ROOT / 'tools' / f'{name}.py'), *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Digits as folders of 32 x 32 images, a config derived as users do, and a network trained with the recipe."""
    import cv2
    from sklearn.datasets import load_digits
    folder = tmp_path_factory.mktemp('digits')
    digits = load_digits()
    for label in range(10):
        images = digits.images[digits.target == label]
        for split, chosen in (('train', images[:24]), ('test', images[24:32])):
            target = folder / split / str(label)
            target.mkdir(parents=True)
            for index, image in enumerate(chosen):
                big = cv2.resize(image.astype(np.float32) * 15, (32, 32), interpolation=cv2.INTER_LINEAR)
                cv2.imwrite(str(target / f'{index}.png'), np.repeat(big.astype(np.uint8)[..., None], 3, -1))
    for stem in ('resnet20_cifar10', 'resnet20_snn-light_cifar10'):
        (folder / f'{stem}.py').write_text(
            f"_base_ = '{ROOT}/configs/resnet_cifar/{stem}.py'\n"
            f"train_dataloader = dict(dataset=dict(data_root='{folder}'), batch_size=24, num_workers=0, "
            "persistent_workers=False)\n"
            f"val_dataloader = dict(dataset=dict(data_root='{folder}'), num_workers=0, persistent_workers=False)\n"
            "test_dataloader = val_dataloader\n"
            f"work_dir = '{folder}/work'\n")
    spiking = folder / 'resnet20_snn-light_cifar10.py'
    spiking.write_text(spiking.read_text() + "custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='light', "
                       "num_images=16, batch_size=8)]\n")
    run('train', folder / 'resnet20_cifar10.py', '--cfg-options', 'train_cfg.max_epochs=3', 'train_cfg.val_interval=3',
        'default_hooks.checkpoint.interval=3', 'optim_wrapper.optimizer.lr=0.05')
    return folder


def test_three_ways_to_one_number(trained, trusted, tmp_path):
    config, checkpoint = trained / 'resnet20_snn-light_cifar10.py', trained / 'work' / 'epoch_3.pth'
    output = run('test', config, checkpoint, '--cfg-options', f'model.time_steps={TIME_STEPS}')
    tested = re.findall(r'accuracy/top1: ([\d.]+)', output)[-1]

    arguments = (config, checkpoint, '--time-steps', TIME_STEPS, 8, '--pipelines', 'none', 'light', '--seeds', 1,
                 '--ceiling', '--work-dir', tmp_path)
    output = run('sweep', *arguments)
    assert '5 of 5 runs' in output
    rows = json.loads((tmp_path / 'rows.json').read_text())['rows']
    swept, = [row['accuracy/top1'] for row in rows
              if (row['pipeline'], row['time_steps'], row['seed']) == ('light', TIME_STEPS, 0)]
    assert f'{swept:.4f}' == tested
    assert all('accuracy/top1 (ceiling)' in row for row in rows if row['pipeline'] != 'ann')
    assert {path.name for path in tmp_path.iterdir()} >= {'rows.json', 'rows.csv', 'table.md', 'figure.png'}

    # Not run again; what was lost is.
    stored = json.loads((tmp_path / 'rows.json').read_text())
    lost = stored['rows'].pop()
    (tmp_path / 'rows.json').write_text(json.dumps(stored))
    assert '1 of 5 runs' in run('sweep', *arguments)
    again = json.loads((tmp_path / 'rows.json').read_text())['rows'][-1]
    assert {key: again[key] for key in (*AXES, 'accuracy/top1')} == {key: lost[key] for key in (*AXES, 'accuracy/top1')}

    init_default_scope('mmpretrain')
    cfg = Config.fromfile(config)
    ann = MODELS.build(dict(cfg.model.classifier, data_preprocessor=cfg.data_preprocessor)).eval()
    load_checkpoint(ann, str(checkpoint))
    batches = list(mmsnn.openmmlab.hooks.calibration_hook(cfg).batches(ann, cfg))
    snn = mmsnn.convert(ann, TIME_STEPS)
    mmsnn.calibrate(snn, batches, 'light', progress=False)
    data = ann.data_preprocessor(pseudo_collate(list(DATASETS.build(cfg.test_dataloader.dataset))), False)
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    accuracy = 100 * (snn(data['inputs']).argmax(1) == labels).float().mean().item()
    assert f'{accuracy:.4f}' == tested


def test_options_stay_with_the_pipeline_that_they_were_written_for(trained, trusted, tmp_path):
    """What a row is called is what it is: ``light`` is one thing in the sweeps of two configs, to the last digit."""
    light, checkpoint = trained / 'resnet20_snn-light_cifar10.py', trained / 'work' / 'epoch_3.pth'
    signed = tmp_path / 'signed.py'
    signed.write_text(light.read_text().replace("pipeline='light'", "pipeline='signed', weights=True, iterations=2, "
                                                "potential='position', max_rate=1"))
    found = {}
    for config in (light, signed):
        output = run('sweep', config, checkpoint, '--time-steps', TIME_STEPS, '--pipelines', 'light', 'signed',
                     '--workers', 1, '--work-dir', tmp_path / config.stem)
        rows = json.loads((tmp_path / config.stem / 'rows.json').read_text())['rows']
        found[config] = {row['pipeline']: {key: value for key, value in row.items() if 'seconds' not in key}
                         for row in rows}
    assert found[light]['light'] == found[signed]['light'] and found[light]['light']['choices'] == {}
    assert found[light]['signed']['choices'] == {}
    choices = dict(max_rate=1, potential='position', weights=True, iterations=2)
    assert found[signed]['signed']['choices'] == choices
    assert found[light]['signed']['synaptic_operations'] != found[signed]['signed']['synaptic_operations']
    assert 'pipeline signed, time_steps 4, seed 0 (max_rate=1,potential=position,weights=True,iterations=2): ' in output
    table = (tmp_path / 'signed' / 'table.md').read_text()
    assert table.endswith('| signed | `max_rate=1`, `potential=position`, `weights=True`, `iterations=2` |\n')
    # Rows of other choices under the same name are not taken for these.
    signed.write_text(signed.read_text().replace('iterations=2', 'iterations=3'))
    assert '1 of 3 runs' in run('sweep', signed, checkpoint, '--time-steps', TIME_STEPS, '--pipelines', 'light',
                                'signed', '--workers', 1, '--work-dir', tmp_path / 'signed')


def job(pipeline, threshold=None, shift=None):
    return dict(pipeline=pipeline, threshold=threshold, shift=shift)


def test_options_of_a_job():
    own = 'signed', dict(weights=True, iterations=200)
    assert job_options(job('light'), own) == {} and job_choices(job('light'), own) == {}
    assert job_options(job('signed'), own) == own[1]
    assert job_options(job('signed:weights=False'), own) == dict(weights=False, iterations=200)
    assert job_choices(job('signed:weights=False'), own) == {}, 'without weights, iterations change nothing'
    assert job_choices(job('light', 'max-layer', 'none'), own) == dict(threshold='max', channel_wise=False, shift=None)
    assert job_choices(job('light', 'mmse', 'bias'), own) == {}, 'what it is anyway'
    assert job_choices(job('ann'), own) is None
    assert 'write NAME:weights=... to give them to another' in unused_options([job('ann'), job('light')], own)
    assert unused_options([job('signed:bias=True')], own) == unused_options([job('light')], ('none', {})) == ''
    rows = [dict(job('light'), choices={}), dict(job('ann'), choices=None),
            dict(job('none', 'max-layer'), choices=dict(threshold='max', channel_wise=False))]
    assert choices_table(rows).splitlines()[2:] == ['| none, max-layer | `threshold=max`, `channel_wise=False` |']
    assert choices_table(rows[:2]) == ''


def test_methods_are_named_as_a_reader_would():
    texts = ['light', 'advanced:iterations=200,learning_rate=0.01', 'signed:max_spikes=1,max_rate=1',
             'signed:weights=True,potential=none', "signed:tune=('bias','threshold'),rounds=2", 'light:shift=potential']
    assert list(readable(texts).values()) == [
        'light', 'advanced, 200 iterations', 'signed, 1 spike a step, rate of 1',
        'signed, and weights, without initial potential', 'signed, bias and threshold by gradient, 2 rounds',
        'light, starts at half the threshold']
    two = ['advanced:iterations=5,learning_rate=0.01', 'advanced:iterations=5,learning_rate=0.1']
    assert list(readable(two).values()) == ['advanced, 5 iterations, learning rate 0.01',
                                            'advanced, 5 iterations, learning rate 0.1']


def test_every_option_has_a_name_for_readers():
    from mmsnn.experiments.methods import PHRASES
    assert set(PHRASES) == set(mmsnn.Pipeline().as_dict()) | {'levels'}


def test_other_settings_in_the_same_folder_are_refused(trained, trusted, tmp_path):
    (tmp_path / 'rows.json').write_text(json.dumps(dict(config='another.py', checkpoint='x.pth', options={}, rows=[])))
    result = subprocess.run([sys.executable, str(ROOT / 'tools' / 'sweep.py'),
                             str(trained / 'resnet20_snn-light_cifar10.py'), str(trained / 'work' / 'epoch_3.pth'),
                             '--work-dir', str(tmp_path)], text=True, capture_output=True)
    assert result.returncode == 1 and 'choose another --work-dir' in result.stderr


def test_rows_that_another_run_has_stored_meanwhile_are_kept(tmp_path):
    def rows(*time_steps):
        return {tuple(row.values())[:6]: row for row in (
            dict(zip(AXES, ('none', None, None, None, steps, 0)), score=float(steps)) for steps in time_steps)}

    path, mine = tmp_path / 'rows.json', dict(config='a.py', checkpoint='a.pth', options=dict(scale=(64, 64)))
    store(path, mine, rows(4, 8))
    store(path, mine, rows(8, 16))  # by a run that began before the others were stored
    assert [row['time_steps'] for row in stored_rows(path, mine)['rows']] == [4, 8, 16]
    with pytest.raises(ValueError, match='rows.json holds runs of another config'):
        store(path, dict(mine, checkpoint='b.pth'), rows(2))
    assert len(stored_rows(path, mine)['rows']) == 3
    assert stored_rows(path, mine, restart=True)['rows'] == []
    store(path, mine, rows(2))
    assert [row['time_steps'] for row in stored_rows(path, mine)['rows']] == [2]


def test_rows_of_a_config_or_checkpoint_before_a_change_are_not_taken_for_these(tmp_path):
    cfg = Config(dict(model=dict(type='X', time_steps=4), test_evaluator=dict(type='Accuracy'),
                      test_dataloader=dict(dataset=dict(type='Y'), num_workers=2),
                      custom_hooks=[dict(type='mmsnn.CalibrationHook', pipeline='light', num_images=8)]))
    checkpoint = tmp_path / 'ann.pth'
    checkpoint.write_bytes(b'weights')
    before = fingerprint(cfg, str(checkpoint))
    cfg.test_dataloader.num_workers, cfg.custom_hooks[0].rounds = 0, 3  # rows know their own choices
    assert fingerprint(cfg, str(checkpoint)) == before
    for changes in ({'custom_hooks.0.num_images': 16}, {'model.exclude': 'layer4.*'},
                    {'test_dataloader.dataset.indices': 10}, {'train_dataloader': dict(dataset=dict(type='Z'))}):
        other = copy.deepcopy(cfg)
        other.merge_from_dict(changes)
        assert fingerprint(other, str(checkpoint)) != before
    checkpoint.write_bytes(b'others')
    after = fingerprint(cfg, str(checkpoint))
    assert after != before
    store(tmp_path / 'rows.json', dict(config='a.py', fingerprint=before), {})
    with pytest.raises(ValueError, match='or of these before a change'):
        stored_rows(tmp_path / 'rows.json', dict(config='a.py', fingerprint=after))
    store(tmp_path / 'earlier.json', dict(config='a.py'), {})  # by a version that wrote no such thing
    assert stored_rows(tmp_path / 'earlier.json', dict(config='a.py', fingerprint=after))['rows'] == []


@pytest.mark.parametrize('text', ['', '{"config": "a.py", "rows": [', '[]', '{"config": "a.py"}', '{"rows": [{}]}'])
def test_damaged_rows_are_named(tmp_path, text):
    (tmp_path / 'rows.json').write_text(text)
    with pytest.raises(ValueError, match='rows.json is damaged'):
        stored_rows(tmp_path / 'rows.json', dict(config='a.py'))
    assert stored_rows(tmp_path / 'rows.json', dict(config='a.py'), restart=True) == dict(config='a.py', rows=[])


def test_metric_that_is_shown():
    row = dict.fromkeys(AXES) | {'confusion_matrix/result': [[1]], 'multi-label/mAP': 50., 'tested': 3}
    assert shown_metric(row) == 'multi-label/mAP'
    assert shown_metric(row | {'accuracy/top1': 90.}) == 'accuracy/top1'
    with pytest.raises(ValueError, match='--metric must be one of multi-label/mAP, not mAP'):
        shown_metric(row, 'mAP')
    with pytest.raises(ValueError, match='gives the ANN no score'):
        shown_metric(dict.fromkeys(AXES) | {'tested': 3})


def test_runs_side_by_side_do_not_read_each_others_predictions(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("model = dict(type='X')\ntest_dataloader = dict(num_workers=2, prefetch_factor=4, timeout=9)\n"
                      "test_evaluator = [dict(type='CocoMetric', outfile_prefix='results'), "
                      "dict(type='LVISMetric', outfile_prefix='results', format_only=True)]\n"
                      "custom_hooks = [dict(type='mmsnn.CalibrationHook')]\n")
    worker = Worker(str(config), 'x.pth', {}, str(tmp_path), False)
    assert [metric.get('outfile_prefix') for metric in worker.cfg.test_evaluator] == [None, 'results']
    assert worker.cfg.test_dataloader == dict(num_workers=0, persistent_workers=False), 'what a DataLoader takes'


@pytest.mark.parametrize('options, score', [
    (dict(metric='bbox'), {'coco/bbox_mAP': 0.}), (dict(metric='segm'), {'coco/segm_mAP': 0.}),
    (dict(metric=['bbox', 'segm'], metric_items=['mAP_50']), {'coco/bbox_mAP_50': 0., 'coco/segm_mAP_50': 0.}),
    (dict(metric='proposal_fast'), {}), (dict(format_only=True, outfile_prefix='x'), {})])
def test_nothing_detected_is_a_score_of_zero(options, score):
    pytest.importorskip('mmdet')
    from mmdet.evaluation import CocoMetric
    evaluator = SimpleNamespace(metrics=[CocoMetric(**options)])
    runner = SimpleNamespace(test=dict, test_loop=SimpleNamespace(evaluator=evaluator))
    assert run_test(runner) == score


def test_table_shows_mean_and_deviation():
    def row(pipeline, time_steps, seed, score, images=None):
        return dict(zip(AXES, (pipeline, None, None, images, time_steps, seed)), calibration_seconds=1.,
                    synaptic_operations=7., event_operations=5., levels=9 if pipeline.startswith('signed') else 2,
                    **{'accuracy/top1': score})

    rows = [row('ann', None, None, 90.), row('none', 4, 0, 10.), row('none', 4, 1, 14.), row('none', 8, 0, 50.),
            row('light', 4, 0, 60.)]
    text, curves, ann = summarise(rows, 'accuracy/top1')
    assert text.splitlines()[:4] == [
        '| accuracy/top1 (ANN: 90.00) | levels a step | T = 4 | T = 8 |', '|---|---|---|---|',
        '| none | 2 | 12.00 ± 2.83 | 50.00 |', '| light | 2 | 60.00 |  |']
    none, light = 'none (2 levels a step)', 'light (2 levels a step)'
    assert ann == 90 and curves[none][0][:2] == (4, 12.) and curves[light] == [(4, 60., 0., 5., 7.)]
    # One T and several sample sizes: laid out as Table 6.
    text, curves, _ = summarise([row('light', 4, 0, 50., 32), row('light', 4, 0, 55., 64)], 'accuracy/top1')
    assert text.splitlines()[0] == '| accuracy/top1, T = 4 | levels a step | 32 images | 64 images |' and not curves
    # The table has the options as they are written, the figure as a reader says them.
    text, curves, _ = summarise([dict(row('light:rounds=2', 4, 0, 50.), choices=dict(rounds=2))], 'accuracy/top1')
    assert list(curves) == ['light, 2 rounds (2 levels a step)'] and '| light:rounds=2 | 2 | 50.00 |' in text
    assert text.endswith('| light:rounds=2 | `rounds=2` |')


def test_options_beside_a_pipeline():
    assert parse_pipeline('light') == ('light', {})
    assert parse_pipeline("signed:max_spikes=None,tune=('bias', 'threshold'),potential=none,threshold=max") == (
        'signed', dict(max_spikes=None, tune=('bias', 'threshold'), potential=None, threshold='max'))
    with pytest.raises(ValueError, match='pipeline must be one of'):
        parse_pipeline('heavy')
    with pytest.raises(ValueError, match=r"unknown calibration options: 'wieghts' \(did you mean 'weights'\?\)"):
        parse_pipeline('light:wieghts=True')
    with pytest.raises(ValueError, match='unknown calibration options'):
        parse_pipeline('light:speed=2')


def test_checkpoints_of_other_names_are_renamed():
    net = mmsnn.CifarResNet(8, base_channels=2)
    own = net.state_dict()
    foreign = {'module.' + name.replace('layer', 'stage'): torch.randn(value.shape) for name, value in own.items()}
    renamed = rename(find_state(dict(best_prec1=91.7, state_dict=foreign)), own)
    assert torch.equal(renamed['layer1.0.conv1.weight'], foreign['module.stage1.0.conv1.weight'])
    assert renamed.keys() == {name for name in own if not name.endswith('num_batches_tracked')}
    with pytest.raises(ValueError, match='different networks'):
        rename(foreign, mmsnn.CifarResNet(8, base_channels=4).state_dict())
    names = [name for name in own if not name.endswith('num_batches_tracked')]
    with pytest.raises(ValueError, match='the first without a partner'):
        rename(own, {name: own[name] for name in names[:-1]})
