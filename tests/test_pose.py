"""A pose estimator of mmpose with a spiking backbone, where that package is installed."""
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpose')

import mmpose
from mmengine.config import Config
from mmpose.registry import MODELS
from mmpose.utils import register_all_modules

from mmsnn.openmmlab.hooks import plain_config
from mmsnn.openmmlab.wrapper import spiking_parts

CONFIG = Path(__file__).parent.parent / 'configs' / 'pose' / (
    'td-hm_res50_8xb64-210e_snn-differential_coco-256x192.py')


def test_a_pose_estimator_with_a_spiking_backbone_finds_what_its_ann_finds(tmp_path):
    register_all_modules()
    zoo = Path(mmpose.__file__).parent / '.mim' / 'configs'  # wherever the package lies
    (tmp_path / 'config.py').write_text(CONFIG.read_text().replace('mmpose::', f'{zoo}/'))
    cfg = Config.fromfile(tmp_path / 'config.py')
    cfg.model.backbone.update(time_steps=8)
    cfg.model.backbone.backbone.update(depth=18, base_channels=8, stem_channels=8, init_cfg=None)
    cfg.model.head.update(in_channels=64, deconv_out_channels=(16, 16, 16))
    ann = MODELS.build(plain_config(cfg).model).eval()
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(ann.state_dict())
    images = torch.randn(4, 3, 128, 96).cumsum(2).cumsum(3) / 20
    ((name, part),) = spiking_parts(model).items()
    assert name == 'backbone' and len(part.snn.neurons) == 17
    part.calibrate([images], 'differential', sizes=8, progress=False)
    with torch.no_grad():
        expected, found = (each(images, None, mode='tensor') for each in (ann, model))
    assert (expected - found).norm() < .02 * expected.norm()
    assert (expected.flatten(2).argmax(2) == found.flatten(2).argmax(2)).float().mean() > .9
