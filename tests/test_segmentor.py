"""A semantic segmentor of mmsegmentation with a spiking backbone, where that package is installed."""
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')

import mmseg
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from mmsnn.openmmlab.hooks import plain_config
from mmsnn.openmmlab.wrapper import spiking_parts

CONFIG = Path(__file__).parent.parent / 'configs' / 'fcn' / (
    'fcn_r50-d8_4xb2-80k_snn-differential_cityscapes-512x1024.py')


def thin(config):
    """An eighth of the channels of the decode heads, to go with 8 base channels; no synchronisation of norms."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if isinstance(value, (dict, list)):
            thin(value)
        if key in ('in_channels', 'channels') and isinstance(value, int):
            config[key] = value // 8
        if value == 'SyncBN':
            config[key] = 'BN'


def test_a_segmentor_with_a_spiking_backbone_segments_as_its_ann(tmp_path):
    register_all_modules()
    # mmengine knows the package by the name of its distribution, which the fork has changed: by its path instead.
    zoo = Path(mmseg.__file__).parent / '.mim' / 'configs'
    (tmp_path / 'config.py').write_text(CONFIG.read_text().replace('mmseg::', f'{zoo}/'))
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert cfg.load_from.endswith('.pth')
    cfg.model.pretrained = cfg.model.data_preprocessor.size = None
    cfg.model.backbone.update(time_steps=8)
    thin(cfg.model)
    cfg.model.backbone.backbone.update(depth=18, base_channels=8, stem_channels=8)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.in_channels //= 4  # without bottlenecks
    ann = MODELS.build(plain_config(cfg).model).eval()
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(ann.state_dict())
    images = torch.randn(2, 3, 64, 96).cumsum(2).cumsum(3) / 20
    ((name, part),) = spiking_parts(model).items()
    assert name == 'backbone' and len(part.snn.neurons) == 19
    part.calibrate([images], 'differential', sizes=8, progress=False)
    with torch.no_grad():
        expected, found = (each(images, mode='tensor') for each in (ann, model))
    assert (expected - found).norm() < .02 * expected.norm()
    assert (expected.argmax(1) == found.argmax(1)).float().mean() > .98
