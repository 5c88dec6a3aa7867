"""Detectors that are put together otherwise than those of the zoo's configs here, thin and with random weights."""
import copy
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

import mmdet
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmsnn
from mmsnn.openmmlab.parts import blank_samples
from mmsnn.openmmlab.wrapper import spiking_parts

ROOT = Path(mmdet.__file__).parent / '.mim' / 'configs'

register_all_modules()


@pytest.fixture(autouse=True)
def scope():
    """Other tests in the same process may have set another."""
    init_default_scope('mmdet')


def config(name):
    """A config of the zoo with a thin ResNet-18, whose heads keep what random weights detect."""
    detector = Config.fromfile(str(ROOT / f'{name}.py')).model
    detector.backbone.update(depth=18, base_channels=8, init_cfg=None)
    if 'rcnn' in detector.test_cfg:
        detector.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
        detector.test_cfg.rcnn.update(score_thr=0., max_per_img=5)
    return detector


def double_heads():
    detector = config('double_heads/dh-faster-rcnn_r50_fpn_1x_coco')
    detector.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    detector.rpn_head.update(in_channels=16, feat_channels=16)
    detector.roi_head.bbox_roi_extractor.out_channels = 16
    detector.roi_head.bbox_head.update(in_channels=16, conv_out_channels=32, fc_out_channels=32, num_convs=1,
                                       num_fcs=1, num_classes=3)
    return detector


def without_neck():
    """The features of the last stage but one, and a stage behind RoIAlign with a linear layer behind it."""
    detector = config('faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco')
    detector.rpn_head.update(in_channels=32, feat_channels=16)
    detector.roi_head.shared_head.update(depth=18, init_cfg=None, norm_cfg=dict(type='BN'))
    detector.roi_head.bbox_roi_extractor.out_channels = 256  # what the shared head of a ResNet-18 takes
    detector.backbone.base_channels = 64
    detector.rpn_head.in_channels = 256
    detector.roi_head.bbox_head.update(in_channels=512, num_classes=3)
    return detector


def with_options():
    detector = config('htc/htc-without-semantic_r50_fpn_1x_coco')
    detector.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    detector.rpn_head.update(in_channels=16, feat_channels=16)
    for kind in ('bbox', 'mask'):
        detector.roi_head[f'{kind}_roi_extractor'].out_channels = 16
    for head in detector.roi_head.bbox_head:
        head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    for head in detector.roi_head.mask_head:
        head.update(in_channels=16, conv_out_channels=16, num_classes=3)
    return detector


def embeddings():
    """A detector with parameters that are in none of its modules."""
    detector = config('deformable_detr/deformable-detr_r50_16xb2-50e_coco')
    detector.neck.in_channels = [16, 32, 64]
    for stack in (detector.encoder, detector.decoder):
        stack.num_layers = 1
    return detector


@pytest.mark.parametrize('build, parts, detector_only', [
    (double_heads, ['backbone_neck_rpn_head', 'roi_head.bbox_head'], []),
    (without_neck, ['backbone_rpn_head', 'roi_head.shared_head', 'roi_head.bbox_head'], []),
    (with_options, ['backbone_neck_rpn_head', *(f'roi_head.bbox_head.{stage}' for stage in range(3))], []),
    (embeddings, ['backbone_neck'], ['level_embed'])], ids=lambda value: getattr(value, '__name__', None))
def test_detector_loads_predicts_and_is_calibrated(build, parts, detector_only):
    detector, images = build(), torch.rand(1, 3, 64, 96)
    ann = MODELS.build(copy.deepcopy(detector))  # mmdet changes what it builds from
    ann.init_weights()
    for parameter in (dict(ann.named_parameters())[name] for name in detector_only):
        torch.nn.init.normal_(parameter)
    ann.train(False)
    model = MODELS.build(dict(type='mmsnn.SpikingDetector', time_steps=8, coding='differential', detector=detector))
    model.load_state_dict(ann.state_dict())
    model.eval()
    assert list(spiking_parts(model)) == parts

    @torch.no_grad()
    def found(network, runs_as=None):
        for part in spiking_parts(model).values():
            part.runs_as = runs_as or part.runs_as
        return network(images, blank_samples(images), mode='predict')[0].pred_instances

    expected, same = found(ann), found(model, 'ann')
    assert len(expected) and torch.equal(same.scores, expected.scores) and torch.equal(same.bboxes, expected.bboxes)
    for part in spiking_parts(model).values():
        part.runs_as = 'snn'
        part.calibrate(part.inputs([images]), 'differential', sizes=12, threshold='max', progress=False)
    torch.testing.assert_close(found(model).scores[:1], expected.scores[:1], rtol=.05, atol=.01)
    again = MODELS.build(dict(type='mmsnn.SpikingDetector', time_steps=8, coding='differential', detector=detector))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(found(again.eval()).scores, found(model).scores)


@pytest.mark.parametrize('build, named', [
    (double_heads, None), (embeddings, r': bbox_head \(DeformableDETRHead\), encoder \(.*\), decoder \(')])
def test_networks_that_are_no_parts_are_named_in_the_log(monkeypatch, build, named):
    said = []
    monkeypatch.setattr('mmsnn.openmmlab.detector.print_log', lambda text, *_: said.append(text))
    MODELS.build(dict(type='mmsnn.SpikingDetector', time_steps=8, coding='differential', detector=build()))
    assert not said if named is None else len(said) == 1 and re.search(f'stays analog.*{named}', said[0]), said


def test_what_cannot_be_traced_is_named_with_the_way_out(monkeypatch):
    from mmdet.models.dense_heads import RPNHead
    detector = double_heads()
    forward = RPNHead.forward
    monkeypatch.setattr(RPNHead, 'forward', lambda self, x: forward(self, x) if x[0].mean() > 0 else forward(self, x))
    options = dict(type='mmsnn.SpikingDetector', time_steps=8, coding='differential', detector=detector)
    with pytest.raises(mmsnn.ConversionError, match=r"(?s)backbone_neck_rpn_head of the detector does not convert.*"
                       r"rpn_head: RPNHead.*parts=\('backbone', 'neck'\)"):
        MODELS.build(options)
    assert list(spiking_parts(MODELS.build(dict(options, parts=('backbone', 'neck'))))) == ['backbone_neck']


def test_what_decides_by_sizes_is_converted_for_those_of_an_example(monkeypatch):
    from mmdet.models.dense_heads import RPNHead
    forward, images = RPNHead.forward, torch.rand(1, 3, 64, 96)
    monkeypatch.setattr(RPNHead, 'forward', lambda self, x: forward(self, x if x[0].shape[-1] > 2 else x[:1]))
    options = dict(type='mmsnn.SpikingDetector', time_steps=8, coding='differential', detector=double_heads())
    with pytest.raises(mmsnn.ConversionError, match='(?s)rpn_head: RPNHead.*decides by sizes: example='):
        MODELS.build(options)
    part = spiking_parts(MODELS.build(dict(options, example=(1, 3, 64, 96))))['backbone_neck_rpn_head']
    torch.testing.assert_close(part.snn.network(images)[1], part.ann(images)[1])
    with pytest.raises(ValueError, match='converted for inputs of size'):
        part.snn.network(images[..., :64])
