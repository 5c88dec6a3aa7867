"""mmdet's backbones, wrapped: every variant converts, and both kinds of checkpoints load."""
import copy

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint as mmengine_save_checkpoint
from mmengine.runner.checkpoint import get_state_dict, load_checkpoint

from mmsnn import ConversionError, convert

from networks import randomise_norms

register_all_modules()
THIN = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def spiking(backbone=THIN, time_steps=4, **kwargs):
    return MODELS.build(dict(type='mmsnn.SpikingBackbone', time_steps=time_steps, backbone=backbone, **kwargs))


def plain(backbone=THIN):
    ann = randomise_norms(MODELS.build(copy.deepcopy(backbone)))
    ann.eval()  # returns nothing in mmdet
    return ann


@pytest.mark.parametrize('backbone, layers', [
    (dict(depth=18), 17), (dict(depth=34), 33), (dict(depth=50), 49), (dict(depth=101), 100), (dict(depth=152), 151),
    (dict(depth=50, style='caffe'), 49), (dict(depth=50, deep_stem=True), 51), (dict(depth=50, avg_down=True), 49),
    (dict(depth=50, frozen_stages=1, norm_eval=True, norm_cfg=dict(type='BN', requires_grad=False)), 49),
    (dict(type='ResNetV1d', depth=50), 51), (dict(type='ResNeXt', depth=50, groups=32, base_width=4), 49),
    (dict(depth=50, with_cp=True), 49), (dict(depth=50, out_indices=(1, 3)), 49),
], ids=lambda value: '-'.join(map(str, value.values())) if isinstance(value, dict) else '')
def test_every_resnet_variant_converts(backbone, layers):
    cfg = dict(dict(type='ResNet', base_channels=8), **backbone)
    if cfg['type'] == 'ResNeXt':
        cfg.pop('base_channels')  # its widths follow from the groups
    ann = plain(cfg)
    wrapped = spiking(cfg)
    wrapped.load_state_dict(ann.state_dict())
    assert len(wrapped.snn.neurons) == layers
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in wrapped.snn.modules())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for output, expected in zip(wrapped.snn.network(x), ann(x), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
    wrapped.calibrate([x], 'none', progress=False)
    assert [o.shape for o in wrapped(x)] == [o.shape for o in wrapped.snn.network(x)]


def test_standardised_weights_of_detectors_become_plain_convolutions():
    ann = randomise_norms(MODELS.build(dict(
        type='mmdet.DetectoRS_ResNet', depth=50, base_channels=8, conv_cfg=dict(type='ConvAWS'),
        stage_with_sac=(False,) * 4, output_img=False)))
    ann.double().train(False)  # random networks of this depth amplify rounding
    snn, x = convert(ann, 2), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert len(snn.neurons) == 49
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in snn.modules())
    with torch.no_grad():
        for output, expected in zip(snn.network(x), ann(x), strict=True):
            assert (output - expected).norm() < 1e-8 * expected.norm()


def test_leftover_averages_of_weights_are_named_and_not_used(monkeypatch):
    messages = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handle', lambda record: messages.append(record.getMessage()))
    ann, wrapped = plain(), spiking()
    state = ann.state_dict()
    averages = {f'ema_{key.replace(".", "_")}': torch.zeros_like(value) for key, value in state.items()}
    wrapped.load_state_dict(state | averages)
    assert torch.equal(wrapped.ann.conv1.weight, ann.conv1.weight)
    (message,) = [message for message in messages if 'averages' in message]
    assert 'ema_conv1_weight' in message and f'and {len(averages) - 3} more' in message
    with pytest.raises(RuntimeError, match='emacs is not in the network'):
        wrapped.load_state_dict(state | {'emacs': torch.zeros(1)})


def test_deformable_convolutions_are_refused_by_name():
    with pytest.raises(ConversionError, match='layer4.0.conv2: ModulatedDeformConv2dPack'):
        spiking(dict(type='ResNet', depth=50, base_channels=8, dcn=dict(type='DCNv2', deform_groups=1),
                     stage_with_dcn=(False, False, False, True)))


def test_unfoldable_norm_is_refused_by_name():
    with pytest.raises(ConversionError, match='gn1: GroupNorm'):
        spiking(dict(THIN, norm_cfg=dict(type='GN', num_groups=2)))


def test_both_kinds_of_checkpoints_load(tmp_path):
    ann = plain()
    images = torch.randn(2, 3, 64, 64)
    mmengine_save_checkpoint(dict(state_dict={f'backbone.{k}': v for k, v in ann.state_dict().items()}),
                             str(tmp_path / 'ann.pth'))
    detector = torch.nn.ModuleDict(dict(backbone=spiking()))
    load_checkpoint(detector, str(tmp_path / 'ann.pth'), strict=True)
    assert not detector.backbone.calibrated
    with pytest.raises(RuntimeError, match='no thresholds yet'):
        detector.backbone(images)
    detector.backbone.calibrate([images], 'light', progress=False)
    # mmengine's own way of collecting a state keeps parameters and buffers only.
    mmengine_save_checkpoint(dict(state_dict=get_state_dict(detector)), str(tmp_path / 'snn.pth'))
    again = torch.nn.ModuleDict(dict(backbone=spiking()))
    load_checkpoint(again, str(tmp_path / 'snn.pth'), strict=True)
    assert again.backbone.snn.settings['pipeline'] == 'light'
    for one, other in zip(detector.backbone(images), again.backbone(images)):
        assert torch.equal(one, other)


def test_checkpoint_of_another_backbone_is_refused():
    other = MODELS.build(dict(THIN, depth=34))
    with pytest.raises(RuntimeError, match='not in the network'):
        spiking().load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match='missing in the checkpoint'):
        spiking(dict(THIN, depth=34)).load_state_dict(MODELS.build(THIN).state_dict())
    with pytest.raises(RuntimeError, match=r'instead of \(16,'):
        spiking(dict(THIN, base_channels=16)).load_state_dict(MODELS.build(THIN).state_dict())


def test_calibrated_checkpoint_for_other_time_steps_is_refused():
    backbone = spiking()
    backbone.calibrate([torch.randn(1, 3, 64, 64)], 'none', progress=False)
    with pytest.raises(RuntimeError, match='time_steps=4'):
        spiking(time_steps=8).load_state_dict(backbone.state_dict())


def test_many_steps_approach_the_ann():
    ann = plain()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = ann(x)[-1]
    errors = []
    for time_steps in (16, 512):
        backbone = spiking(time_steps=time_steps)
        backbone.load_state_dict(ann.state_dict())
        backbone.calibrate([x], 'light', progress=False)
        errors.append((backbone(x)[-1] - expected).norm() / expected.norm())
    assert errors[1] < .05 < errors[0]
