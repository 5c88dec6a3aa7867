"""Pure-Python configs, in which a type is a class: sweep, report and hook find the same things in them."""
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.utils import register_all_modules

from mmsnn import SpikeMetric, SpikingClassifier
from mmsnn.openmmlab.hooks import WRAPPED, CalibrationHook, calibration_hook, plain_config

BASE = '''
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet
default_scope = 'mmpretrain'
model = dict(type=ImageClassifier, backbone=dict(type=ResNet, depth=18), neck=dict(type=GlobalAveragePooling),
             head=dict(type=LinearClsHead, num_classes=5, in_channels=512))
test_evaluator = dict(type=Accuracy)
'''
SPIKING = '''
from mmengine.config import read_base
with read_base():
    from .base import *
from mmsnn import AgreementMetric, CalibrationHook, SpikeMetric, SpikingClassifier
model = dict(type=SpikingClassifier, time_steps=8, classifier=model)
custom_hooks = [dict(type=CalibrationHook, num_images=4)]
test_evaluator = [test_evaluator, dict(type=SpikeMetric), dict(type=AgreementMetric)]
'''


@pytest.fixture(params=['as written', 'dumped', 'by path'])
def config(request, tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'spiking.py').write_text(SPIKING)
    cfg = Config.fromfile(tmp_path / 'spiking.py')
    if request.param == 'dumped':
        cfg.dump(tmp_path / 'dumped.py')
        return Config.fromfile(tmp_path / 'dumped.py')
    if request.param == 'by path':
        text = (tmp_path / 'spiking.py').read_text()
        for kind in ('AgreementMetric', 'CalibrationHook', 'SpikeMetric', 'SpikingClassifier'):
            module = {'SpikeMetric': 'metrics', 'AgreementMetric': 'agreement', 'CalibrationHook': 'hooks',
                      'SpikingClassifier': 'classifier'}[kind]
            text = text.replace(f'type={kind}', f"type='mmsnn.openmmlab.{module}.{kind}'")
        (tmp_path / 'paths.py').write_text(text)
        return Config.fromfile(tmp_path / 'paths.py')
    return cfg


def test_wrapper_hook_and_metrics_are_found(config, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / 'tools')  # the page reads tables of sweeps
    from mmsnn.experiments.page import find
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert isinstance(calibration_hook(config), CalibrationHook)
        assert isinstance(MODELS.build(config.model), SpikingClassifier) and find(config.model, WRAPPED) == 'model'
        plain = plain_config(config)
        assert type(MODELS.build(plain.model)).__name__ == 'ImageClassifier'
        assert not plain.custom_hooks
        (metric,) = plain.test_evaluator
        assert metric['type'] is not SpikeMetric and 'Accuracy' in str(metric['type'])
