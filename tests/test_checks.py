"""What is refused before a test: wrong choices of the hook, checkpoints of another network or another calibration."""
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger

import mmsnn
from mmsnn.neurons.pipelines import make_pipeline
from mmsnn.openmmlab.checks import CheckpointError, ConfigError, check_averages, check_fits, is_calibrated
from mmsnn.openmmlab.images import data_set, image_source
from mmsnn.openmmlab.preflight import check_command, given_options, spikes
from mmsnn.openmmlab.scripts import files_among, import_quietly, read_config
from mmsnn.openmmlab.wrapper import SpikingWrapper
from mmsnn.progress import LOGGER, passed_on

from networks import three_layers


class Detector(nn.Module):
    """A spiking backbone, and a head of its own."""

    def __init__(self, head=(4, 2), time_steps=4):
        super().__init__()
        self.backbone = SpikingWrapper()
        self.backbone.wrap(three_layers(), time_steps=time_steps)
        self.head = nn.Sequential(nn.Linear(*head), nn.BatchNorm1d(head[1]))


def state_of_the_ann(detector):
    return {f'backbone.{key}': value for key, value in detector.backbone.ann.state_dict().items()} | {
        f'head.{key}': value for key, value in detector.head.state_dict().items()}


IMAGES = torch.tensor([1., .5]).view(2, 1, 1, 1)


@pytest.fixture
def logged():
    """What mmengine's logger gets."""
    logger = MMLogger.get_instance('test_checks', log_level='INFO')
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
    logger.handlers = [handler]
    return logger, records


def hook_for(**options):
    """A hook that calibrates on two images of one pixel, whatever the config says."""
    hook = mmsnn.CalibrationHook(**{'num_images': 2, 'progress': False, **options})
    hook.batches = lambda model, cfg: [IMAGES]
    return hook


CFG = Config(dict(train_dataloader=dict(dataset=dict(type='CocoDataset', data_root='data/digits/',
                                                     ann_file='train.json'))))


@pytest.mark.parametrize('options, message', [
    (dict(pipeline='singed'), r"pipeline must be one of .*not 'singed' \(did you mean 'signed'\?\)"),
    (dict(pipeline='light', ruonds=2), r"unknown calibration options: 'ruonds' \(did you mean 'rounds'\?\)"),
    (dict(threshold='mse'), r"threshold must be one of .*not 'mse' \(did you mean 'mmse'\?\)"),
    (dict(weights='False'), "weights must be of type bool, not 'False'"),
    (dict(max_rate='2'), "max_rate must be of type int, not '2'"),
    (dict(pipeline='signed', max_rate=5), r'max_rate must be from 1 to max_spikes \(4\), not 5'),
    (dict(sizes=2, signed=True), 'signed=True has no effect on neurons of kind'),
    (dict(levels=1), 'at least 2 levels a step'),
    (dict(learning_rate='fast'), "learning_rate must be of type float, not 'fast'"),
    (dict(momentum=1), 'momentum must be from 0 to 1'),
    (dict(num_images='many'), "must be whole numbers of at least 1, not 'many' and 1"),
    (dict(batch_size=0), 'must be whole numbers of at least 1, not 32 and 0'),
    (dict(images='images.pth', dataset=dict(type='CocoDataset')), 'name two sources of calibration images'),
    (dict(dataset=dict(ann_file='val.json')), "dataset has no type: give a data set's whole config"),
])
def test_choices_are_checked_when_the_hook_is_built(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        mmsnn.CalibrationHook(**options)
    assert '\n' not in str(caught.value) and isinstance(caught.value, ValueError)


def test_choices_that_exist_are_accepted():
    mmsnn.CalibrationHook('signed', max_spikes=None, tune=['bias'], learning_rate=1, progress=False)
    for options in (dict(levels=9), dict(sizes=6), dict(max_spikes=8, max_rate=8)):  # of what is usual at some T
        mmsnn.CalibrationHook(**options)


def check(config, checkpoint=None, *options):
    check_command(str(config), read_config(str(config), given_options(['x.pth', *options])), checkpoint)


def test_commands_check_before_they_build(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmsnn'])\nmodel = dict(type='NoSuchModel')\n"
                      "custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='light')]\n")
    check(config)
    for options in (['custom_hooks.0.pipeline=lihgt'], ['custom_hooks.0.bais=True', '--work-dir', 'x']):
        with pytest.raises(ConfigError, match=f"config '{config}': CalibrationHook: .*did you mean '(light|bias)'"):
            check(config, None, '--cfg-options', *options)
    with pytest.raises(ConfigError, match='--cfg-options takes KEY=VALUE'):
        given_options(['--cfg-options', 'custom_hooks.0.bias'])


def test_commands_start_with_what_mmsnn_does(tmp_path, monkeypatch, capsys):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmsnn'])\n"
                      "model = dict(type='X', backbone=dict(type='mmsnn.SpikingBackbone', time_steps=4, "
                      "backbone=dict(type='ResNet')))\n"
                      "train_dataloader = dict(dataset=dict(type='CocoDataset', ann_file='train.json'))\n"
                      "custom_hooks = [dict(type='mmsnn.CalibrationHook', num_images=9)]\n")
    check(config, 'x.pth', '--cfg-options', 'custom_hooks.0.levels=9')
    assert capsys.readouterr().out == ("mmsnn: ResNet spikes for T = 4 steps; pipeline 'differential', sizes=4; "
                                       "calibration images: 9 of CocoDataset train.json\n")
    config.write_text(config.read_text().replace('time_steps=4, ', ''))
    check(config, 'x.pth')  # what is missing is said when the model is built
    assert capsys.readouterr().out == '\n'
    monkeypatch.setenv('RANK', '1')
    check(config, 'x.pth')
    assert capsys.readouterr().out == ''


def test_calibrated_checkpoint_for_the_config_of_an_ann_is_refused(tmp_path):
    config, path = tmp_path / 'config.py', tmp_path / 'snn.pth'
    detector = Detector()
    detector.backbone.calibrate([IMAGES], 'light', progress=False)
    torch.save(dict(state_dict=detector.state_dict()), path)
    config.write_text("model = dict(type='X', backbone=dict(type='ResNet', depth=50))\n")
    with pytest.raises(CheckpointError, match='holds a calibrated spiking network, but the model of .* is an ANN'):
        check(config, str(path))
    config.write_text("model = dict(type='X', backbone=dict(type='mmsnn.SpikingBackbone', time_steps=4))\n")
    check(config, str(path))
    torch.save(state_of_the_ann(detector), path)
    config.write_text("model = dict(type='X', backbone=dict(type='ResNet', depth=50))\n")
    check(config, str(path))
    assert spikes(ConfigDict(a=[dict(type=int), dict(b=dict(type='Own', time_steps=3))])) and not spikes(None)


def test_checkpoint_must_have_the_whole_model():
    detector = Detector()
    state = state_of_the_ann(detector)
    for fits in (state, {f'module.{key}': value for key, value in state.items()},
                 {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}):
        check_fits(detector, fits)
    detector.backbone.calibrate([IMAGES], 'light', progress=False)
    check_fits(detector, detector.state_dict())
    assert is_calibrated(detector.state_dict()) and not is_calibrated(state)
    with pytest.raises(CheckpointError, match=r'not one of this model \(Detector\): head.0.weight is missing, head.0'):
        check_fits(detector, {key: value for key, value in state.items() if not key.startswith('head.0')})
    with pytest.raises(CheckpointError, match=r'backbone\.\* is missing. Use the checkpoint'):
        check_fits(detector, {key: value for key, value in state.items() if not key.startswith('backbone')})
    with pytest.raises(CheckpointError, match='size mismatch for head.0.weight'):
        check_fits(Detector(head=(4, 3)), state)
    with pytest.raises(CheckpointError, match='and 1 more. Use'):
        check_fits(detector, {key: value for key, value in state.items() if key.startswith('backbone')})


def test_weights_that_nobody_uses_are_named(monkeypatch):
    told = []
    monkeypatch.setattr('mmsnn.openmmlab.checks.print_log', lambda text, *_: told.append(text))
    detector = Detector()
    check_fits(detector, state_of_the_ann(detector) | {'mask_head.weight': torch.zeros(1)})
    assert told == ['the checkpoint has weights that this model (Detector) does not use: mask_head.weight']


def test_names_of_older_versions_are_read_by_the_modules_themselves():
    class Renamed(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
            if f'{prefix}old' in state_dict:
                state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}old')
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    detector = Detector()
    detector.head[0] = Renamed(4, 2)
    state = state_of_the_ann(detector)
    state['head.0.old'] = state.pop('head.0.weight')
    check_fits(detector, state)
    assert 'head.0.old' in state, 'what is loaded afterwards is as it was'


def test_hook_looks_at_what_is_loaded():
    detector = Detector()
    runner = SimpleNamespace(model=detector)
    hook = hook_for()
    hook.after_load_checkpoint(runner, dict(state_dict=state_of_the_ann(detector)))
    hook.after_load_checkpoint(runner, state_of_the_ann(detector))
    with pytest.raises(CheckpointError):
        hook.after_load_checkpoint(runner, dict(state_dict={'bbox_head.weight': torch.zeros(1)}))
    hook.after_load_checkpoint(SimpleNamespace(model=nn.Linear(1, 1)), dict(state_dict={}))


@pytest.fixture
def calibrated(logged):
    detector = Detector()
    hook_for(pipeline='signed', max_rate=2, seed=3).calibrate(detector, CFG, logged[0])
    other = Detector()
    other.load_state_dict(detector.state_dict())
    return other


def test_checkpoint_remembers_its_images(calibrated):
    assert calibrated.backbone.snn.settings['images'] == dict(
        number=2, source='CocoDataset data/digits/train.json', seed=3, batch_size=1)


@pytest.mark.parametrize('options', [
    dict(), dict(progress=True), dict(memory_gb=1), dict(max_rate=2),
    dict(iterations=7, learning_rate=.1, tune=('bias',)),
], ids=str)
def test_what_changes_nothing_does_not_count(calibrated, logged, options):
    hook_for(**{'pipeline': 'signed', 'seed': 3, **options}).calibrate(calibrated, CFG, logged[0])
    assert 'using the calibration of the checkpoint' in logged[1][-1][1]
    assert not [text for level, text in logged[1] if level == 'WARNING']


@pytest.mark.parametrize('options, message', [
    (dict(max_rate=1), r'max_rate=2 \(the config: 1\)\. Use the same'),
    (dict(max_rate=1, potential=None), r"max_rate=2 \(the config: 1\), potential='channel' \(the config: None\)"),
    (dict(weights=True), r'weights=False \(the config: True\)'),
    (dict(seed=4), r'seed=3 \(the config: 4\)'),
    (dict(pipeline='light'), r"calibrated with pipeline='signed', the config asks for 'light'"),
])
def test_other_options_than_the_checkpoint_are_refused(calibrated, logged, options, message):
    with pytest.raises(CheckpointError, match=message):
        hook_for(**{'pipeline': 'signed', 'seed': 3, **options}).calibrate(calibrated, CFG, logged[0])


def test_other_images_than_the_checkpoint_are_worth_a_warning(calibrated, logged):
    hook_for(pipeline='signed', seed=3, num_images=128, images='here/noise.pth').calibrate(calibrated, CFG, logged[0])
    (warning,) = [text for level, text in logged[1] if level == 'WARNING']
    assert warning.endswith("other images than the config names: number 2 (the config: 128), "
                            "source 'CocoDataset data/digits/train.json' (the config: 'noise.pth')")


def test_checkpoint_from_before_images_were_remembered(logged):
    detector = Detector()
    detector.backbone.calibrate([IMAGES], 'light', progress=False)
    assert 'images' not in detector.backbone.snn.settings
    hook_for(pipeline='light', num_images=9).calibrate(detector, CFG, logged[0])
    assert not [text for level, text in logged[1] if level == 'WARNING']


def test_log_says_what_spikes(logged):
    runner = SimpleNamespace(model=Detector(), logger=logged[0], cfg=CFG)
    hook_for(pipeline='light', rounds=2).before_run(runner)
    assert logged[1] == [('INFO', "mmsnn: backbone (Sequential, 2 layers of neurons) spikes for T = 4 steps; pipeline "
                                  "'light', rounds=2; calibration images: 2 of CocoDataset data/digits/train.json")]
    hook_for(pipeline='light', weights=True, iterations=2).calibrate(runner.model, CFG, logged[0])
    expected = "calibrating backbone: pipeline 'light', weights=True, iterations=2, T = 4, 2 images"
    assert any(expected in text for _, text in logged[1])


def test_messages_of_the_core_appear_in_the_log_once(logged, caplog):
    caplog.set_level(logging.INFO)
    with passed_on(logged[0]):
        LOGGER.getChild('simulation.engine').warning('no compiler')
        with passed_on(logged[0]):
            LOGGER.info('halfway')
    LOGGER.info('afterwards')
    assert logged[1] == [('WARNING', 'no compiler'), ('INFO', 'halfway')]
    assert caplog.messages == ['afterwards']


def test_sources_of_images():
    coco = dict(type='CocoDataset', data_root='/home/me/data/coco/', ann_file='annotations/train.json')
    assert image_source(coco) == 'CocoDataset coco/annotations/train.json'
    folder = dict(type='CustomDataset', data_root='data/cifar10', data_prefix='train')
    wrapped = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=coco), folder])
    assert image_source(wrapped) == 'CocoDataset coco/annotations/train.json + CustomDataset data/cifar10/train'
    assert image_source(dict(type='VOC', data_prefix=dict(img='VOC2007/'))) == 'VOC VOC2007'


def test_in_effect_leaves_out_what_changes_nothing():
    assert 'iterations' not in make_pipeline('light').in_effect() and 'rounds' in make_pipeline('light').in_effect()
    assert 'rounds' not in make_pipeline('none').in_effect() and 'iterations' in make_pipeline('advanced').in_effect()


def test_calibration_images_need_a_data_set_and_transforms():
    test, own = [dict(type='LoadImageFromFile')], [dict(type='Own')]
    for without in (dict(), dict(train_dataloader=None)):
        cfg = Config(dict(without, test_dataloader=dict(dataset=dict(type='A', pipeline=test))))
        assert mmsnn.CalibrationHook().source(cfg) == 'no data set'
        with pytest.raises(ValueError, match='no train_dataloader to draw calibration images from: give'):
            data_set(cfg, None)
        assert data_set(cfg, dict(type='B')) == dict(type='B', pipeline=test)
        assert data_set(cfg, dict(type='B', pipeline=own)) == dict(type='B', pipeline=own)
    cfg.train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(type='B', pipeline=own)))
    assert data_set(cfg, None).dataset.pipeline == test
    assert cfg.train_dataloader.dataset.dataset.pipeline == own
    for without in (dict(), dict(test_dataloader=None)):
        cfg = Config(dict(without, train_dataloader=dict(dataset=dict(type='A', pipeline=test))))
        with pytest.raises(ValueError, match='has no pipeline to prepare calibration images with'):
            data_set(cfg, None)
        assert data_set(cfg, dict(type='B')) == dict(type='B')


@pytest.mark.parametrize('kind', ['EMAHook', 'mmengine.EMAHook', EMAHook])
def test_averages_beside_the_hook_are_refused_where_no_test_runs_too(kind):
    cfg = Config(dict(custom_hooks=[dict(type=kind), dict(type='mmsnn.CalibrationHook')]))
    with pytest.raises(ConfigError, match='EMAHook swaps weights after the conversion'):
        check_averages(cfg)


def test_values_of_options_are_no_files_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'epoch=1.ckpt').touch()
    typed = ['c.py', '--cfg-options', 'custom_hooks.0.images=images.pth', '--out=x.pth', 'epoch=1.ckpt', 'a b.pth']
    assert files_among(typed, ('.pth', '.ckpt')) == ['epoch=1.ckpt', 'a b.pth']


def test_packages_need_not_have_metrics_of_their_own(tmp_path, monkeypatch, capsys):
    (tmp_path / 'mmown' / 'datasets').mkdir(parents=True)
    (tmp_path / 'mmown' / '__init__.py').touch()
    (tmp_path / 'mmown' / 'datasets' / '__init__.py').write_text("print('data sets')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_quietly('mmown')
    assert capsys.readouterr().out == 'data sets\n'
