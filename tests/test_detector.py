"""Whole detectors that spike: the trained RetinaNet and Faster R-CNN, on real digits."""
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

import mmdet
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict, load_checkpoint
from torch import nn

import mmsnn
from mmsnn.openmmlab.hooks import plain_config
from mmsnn.openmmlab.parts import blank_samples
from mmsnn.openmmlab.wrapper import spiking_parts

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
NETS = 'retinanet', 'faster-rcnn'
PARTS = dict(zip(NETS, (['backbone_neck_bbox_head'], ['backbone_neck_rpn_head', 'roi_head.bbox_head'])))
HEADS = dict(zip(NETS, (['bbox_head'], ['rpn_head', 'roi_head.bbox_head'])))

register_all_modules()


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    from make_digits import make_digits
    folder = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(folder, train=16, val=1, test=4)
    return folder


def weights(net):
    return str(ROOT / 'checkpoints' / f'{net}_r50-thin_fpn_digits.pth')


def config_of(net, digits, folder, time_steps=8, num_images=16, pipeline='differential', **model):
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / f'{net}_r50-thin_fpn_snn-whole-{pipeline}_digits.py')
    cfg.model.update(time_steps=time_steps, **model)
    cfg.custom_hooks[0].update(num_images=num_images, progress=False)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{digits}/'
        loader.update(num_workers=0, persistent_workers=False)
    cfg.test_evaluator = [dict(type='CocoMetric', ann_file=f'{digits}/test.json', metric='bbox'),
                          dict(type='mmsnn.SpikeMetric'), dict(type='mmsnn.AgreementMetric')]
    cfg.work_dir, cfg.load_from = str(folder), weights(net)
    return cfg


def build(net, **options):
    """The detector with the weights of its ANN."""
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / f'{net}_r50-thin_fpn_snn-whole-differential_digits.py')
    cfg.model.update(dict(dict(time_steps=2), **options))
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, weights(net), map_location='cpu', strict=True)
    return model


def cascade():
    """Config of a Cascade Mask R-CNN, thin, that keeps what random weights detect."""
    detector = Config.fromfile(str(Path(mmdet.__file__).parent / '.mim' / 'configs' / '_base_' / 'models'
                                   / 'cascade-mask-rcnn_r50_fpn.py')).model
    detector.backbone.update(depth=18, base_channels=8, init_cfg=None)
    detector.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    detector.rpn_head.update(in_channels=16, feat_channels=16)
    for kind in ('bbox', 'mask'):
        detector.roi_head[f'{kind}_roi_extractor'].out_channels = 16
    for head in detector.roi_head.bbox_head:
        head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    detector.roi_head.mask_head.update(in_channels=16, conv_out_channels=8, num_classes=3)
    detector.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    detector.test_cfg.rcnn.update(score_thr=0., max_per_img=5)
    return detector


@pytest.fixture(scope='module', params=NETS)
def tested(request, tmp_path_factory, digits):
    """Name, runner and metrics of a detector that mmdet's runner has calibrated and tested."""
    folder = tmp_path_factory.mktemp('whole')
    runner = Runner.from_cfg(config_of(request.param, digits, folder))
    return request.param, runner, runner.test()


@pytest.fixture
def images():
    """Four scenes of one size, normalised."""
    return torch.randn(4, 3, 96, 128).cumsum(2).cumsum(3) / 40


def test_a_whole_detector_in_a_test_run(tested):
    net, runner, metrics = tested
    assert list(spiking_parts(runner.model)) == PARTS[net]
    assert all(part.snn.settings['pipeline'] == 'differential' for part in spiking_parts(runner.model).values())
    assert metrics['coco/bbox_mAP'] > .75 and metrics['agreement/bbox_mAP'] > .95
    # Every weight spikes, but for the first layer, which sees the image.
    assert metrics['spike/other_macs'] == 0 and metrics['spike/analog_macs'] < .06 * metrics['spike/ann_macs']
    assert metrics['spike/event_operations'] < metrics['spike/synaptic_operations']
    assert metrics['spike/graded_operations'] == 0 and metrics['spike/event_energy_ratio'] < .8
    shares = {key.removeprefix('spike/').removesuffix('_event_share'): value for key, value in metrics.items()
              if key.endswith('_event_share')}
    assert list(shares) == ['backbone', 'neck', *HEADS[net]]
    assert sum(shares.values()) == pytest.approx(metrics['spike/event_energy_ratio'], rel=1e-4)


@pytest.mark.parametrize('data', ['digits', 'bccd'])
@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('pipeline', ['signed', 'advanced'])
def test_configs_of_rate_codes(data, net, pipeline):
    """The same detector as with changes, calibrated as its backbone alone would be."""
    whole, changes, backbone = (Config.fromfile(ROOT / 'configs' / data / f'{net}_r50-thin_fpn_snn-{kind}_{data}.py')
                                for kind in (f'whole-{pipeline}', 'whole-differential', pipeline))
    assert whole.custom_hooks == backbone.custom_hooks and whole.model.coding == 'rate'
    assert {**changes.model, 'time_steps': 8, 'coding': 'rate'} == whole.model


@pytest.mark.parametrize('net', NETS)
def test_a_whole_detector_under_a_rate_code(net, tmp_path, digits):
    cfg = config_of(net, digits, tmp_path, 4, 2, 'signed')
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    assert {part.snn.settings['pipeline'] for part in spiking_parts(runner.model).values()} == {'signed'}
    assert metrics['coco/bbox_mAP'] > .5
    # What reads no spikes, as a pyramid's output convolutions, multiplies at each step, and is paid for.
    graded, analog, events = (metrics[f'spike/{key}'] for key in (
        'graded_operations', 'analog_macs', 'event_operations'))
    assert graded > .1 * metrics['spike/ann_macs']
    ann = 4.6 * (metrics['spike/ann_macs'] + metrics['spike/other_macs'])
    assert metrics['spike/event_energy_ratio'] == pytest.approx((4.6 * (graded + analog) + .9 * events) / ann, rel=1e-3)
    shares = [value for key, value in metrics.items() if key.endswith('_event_share')]
    assert sum(shares) == pytest.approx(metrics['spike/event_energy_ratio'], rel=1e-3)


def raw_errors(model, batch):
    """Relative error of each raw output of each spiking part, on what it receives."""
    def flat(value):
        return value.flatten() if isinstance(value, torch.Tensor) else torch.cat([flat(each) for each in value])

    received, errors = {}, []
    handles = [part.register_forward_hook(lambda part, inputs, _: received.update({part: inputs[0]}))
               for part in spiking_parts(model).values()]
    model.test_step(batch)
    for handle in handles:
        handle.remove()
    for part in spiking_parts(model).values():
        with torch.no_grad():
            expected, found = part.ann(received[part]), part.simulate(received[part])
        if hasattr(part.ann, 'head'):
            expected, found = expected[1], found[1]  # beside the feature maps
        errors += [float((flat(other) - flat(one)).norm() / flat(one).norm())
                   for one, other in zip(expected, found, strict=True)]
    return errors


def test_raw_outputs_are_those_of_the_ann(tested):
    net, runner, _ = tested
    batch = next(iter(runner.test_dataloader))
    coarse = raw_errors(runner.model, batch)
    assert len(coarse) == 2 * len(PARTS[net]) and max(coarse) < .06
    fine = build(net, time_steps=8)
    images = [fine.data_preprocessor(each, False)['inputs'] for each in list(runner.test_dataloader)[:2]]
    for part in spiking_parts(fine).values():
        part.calibrate(part.inputs(images), 'differential', sizes=8, threshold='max', progress=False)
    errors = raw_errors(fine, batch)
    assert max(errors) < .02 and max(errors) < max(coarse) / 2


def test_saved_calibrated_and_loaded(tested, tmp_path, digits):
    net, runner, _ = tested
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'calibrated.pth'
    runner.cfg.dump(config)
    save_checkpoint(dict(state_dict=get_state_dict(runner.model), meta=dict(
        dataset_meta=runner.test_dataloader.dataset.metainfo)), str(checkpoint))
    detector = init_detector(str(config), str(checkpoint), device='cpu')
    runner.model.cfg = runner.cfg
    files = sorted(map(str, (digits / 'test').iterdir()))[:2]
    for path in files:
        one, other = (inference_detector(model, path).pred_instances for model in (detector, runner.model.eval()))
        assert len(one) and torch.equal(one.bboxes, other.bboxes) and torch.equal(one.scores, other.scores)
    inferencer = DetInferencer(str(config), str(checkpoint), device='cpu', show_progress=False)
    (found,) = inferencer(files[-1], no_save_vis=True)['predictions']
    assert found['scores'] == pytest.approx(one.scores.tolist())
    # One calibration serves every T.
    longer = init_detector(str(config), str(checkpoint), device='cpu', cfg_options={'model.time_steps': 12})
    assert len(inference_detector(longer, files[-1]).pred_instances) == pytest.approx(len(one), abs=20)


def test_a_batch_finds_what_single_images_find(tested, images):
    _, runner, _ = tested

    def found(batch):
        with torch.no_grad():
            samples = runner.model(batch, blank_samples(batch), mode='predict')
        return [sample.pred_instances for sample in samples]

    frames = torch.stack([item['inputs'][0][:, :160, :160].float() for item in runner.test_dataloader])
    frames = (frames.flip(1) - 115) / 57
    for together, image in zip(found(frames), frames):
        (alone,) = found(image[None])
        sure = [each[each.scores > .3] for each in (together, alone)]
        assert len(sure[0]) > 1 and torch.equal(sure[0].labels, sure[1].labels)
        torch.testing.assert_close(sure[0].bboxes, sure[1].bboxes, rtol=0, atol=.5)
        torch.testing.assert_close(sure[0].scores, sure[1].scores, rtol=0, atol=.02)


@pytest.mark.parametrize('net', NETS)
def test_checkpoints_of_the_ann_load_under_their_own_keys(net, images):
    model = build(net)
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / f'{net}_r50-thin_fpn_digits.py')
    ann = MODELS.build(cfg.model)
    load_checkpoint(ann, weights(net), map_location='cpu', strict=True)
    ann.train(False)
    for part in spiking_parts(model).values():
        part.runs_as = 'ann'
    with torch.no_grad():
        one, other = (each(images, blank_samples(images), mode='predict') for each in (model, ann))
    for found, expected in zip(one, other, strict=True):
        assert torch.equal(found.pred_instances.bboxes, expected.pred_instances.bboxes)
        assert torch.equal(found.pred_instances.scores, expected.pred_instances.scores)
    assert not any(part.calibrated for part in spiking_parts(model).values())
    with pytest.raises(RuntimeError, match='no thresholds yet'):
        for part in spiking_parts(model).values():
            part.runs_as = 'snn'
        model(images, blank_samples(images), mode='predict')


def test_a_backbone_alone_is_a_spiking_backbone(images):
    model = build('retinanet', parts=['backbone'], coding='rate')
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / 'retinanet_r50-thin_fpn_snn-none_digits.py')
    cfg.model.backbone.time_steps = 2
    other = MODELS.build(cfg.model).eval()
    load_checkpoint(other, weights('retinanet'), map_location='cpu', strict=True)
    for each in (model, other):
        (part,) = spiking_parts(each).values()
        part.calibrate([images[:1]], 'light', progress=False)
    assert model.state_dict().keys() == other.state_dict().keys()
    with torch.no_grad():
        one, two = (each(images, blank_samples(images), mode='predict') for each in (model, other))
    for found, expected in zip(one, two, strict=True):
        assert torch.equal(found.pred_instances.bboxes, expected.pred_instances.bboxes)
        assert torch.equal(found.pred_instances.scores, expected.pred_instances.scores)


@pytest.mark.parametrize('net', NETS)
def test_what_does_not_spike_is_counted(net, images):
    def cost(parts):
        model = build(net, parts=parts)
        for part in spiking_parts(model).values():
            part.calibrate(part.inputs([images[:1]]), 'differential', bias=False, threshold='max', progress=False)
        metric = mmsnn.SpikeMetric()
        metric.watch(model)
        samples = blank_samples(images[:2])
        with torch.no_grad():
            model(images[:2], samples, mode='predict')
        metric.process({}, samples)
        return metric.evaluate(size=2)

    whole, some = cost(None), cost(['backbone', 'neck'])
    assert whole['spike/other_macs'] == 0 < some['spike/other_macs']
    # Two-stage detectors may see other proposals.
    assert whole['spike/ann_macs'] == pytest.approx(some['spike/ann_macs'] + some['spike/other_macs'], rel=(
        0 if net == 'retinanet' else .1))


def test_the_roi_head_alone(images):
    model = build('faster-rcnn', parts=['roi_head'], coding='rate')
    ((name, part),) = spiking_parts(model).items()
    assert name == 'roi_head.bbox_head'
    (received,) = part.inputs([images[:1]])
    assert received.shape[1:] == (64, 7, 7) and len(received) > 10
    part.calibrate([received], 'differential', sizes=6, threshold='max', progress=False)
    assert list(part.snn.neurons)[0] == 'input' and (received < 0).any()
    again = build('faster-rcnn', parts=['roi_head'], coding='rate')
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        for one, other in zip(part(received), again.roi_head.bbox_head(received), strict=True):
            assert torch.equal(one, other)
    part.convert()
    part.calibrate([received.relu()], 'none', progress=False)
    assert 'input' not in part.snn.neurons, 'rates are not negative'


def test_cascade_and_masks(images):
    """One part for each head, each calibrated on what those before it give; random weights."""
    detector = cascade()
    model = MODELS.build(dict(type='mmsnn.SpikingDetector', time_steps=2, detector=detector)).eval()
    for part in spiking_parts(model).values():
        part.calibrate(part.inputs([images[:1]]), 'differential', bias=False, threshold='max', progress=False)
    heads = [f'roi_head.{kind}_head.{stage}' for kind in ('bbox', 'mask') for stage in range(3)]
    assert list(spiking_parts(model)) == ['backbone_neck_rpn_head', *heads]
    with torch.no_grad():
        (sample,) = model(images[:1], blank_samples(images[:1]), mode='predict')
    assert len(sample.pred_instances) and sample.pred_instances.masks.shape[1:] == (96, 128)


@pytest.mark.parametrize('parts, message', [
    (['nose'], r"parts must be some of \['backbone', 'neck', 'bbox_head'\] of RetinaNet, not \['nose'\]"),
    ([], 'parts must be some of'),
    (['backbone', 'bbox_head'], r"spikes only together with all before it, \('backbone', 'neck', 'bbox_head'\)"),
])
def test_parts_that_cannot_spike(parts, message):
    with pytest.raises(ValueError, match=message):
        build('retinanet', parts=parts)


def test_what_is_refused(images):
    whole, part = build('retinanet'), build('retinanet', parts=['backbone', 'neck'])
    with pytest.raises(RuntimeError, match='not trained'):
        whole(images, mode='loss')
    with pytest.raises(RuntimeError, match='backbone_neck_bbox_head spike, in the config backbone_neck: give'):
        part.load_state_dict(whole.state_dict())
    other = MODELS.build(Config.fromfile(
        ROOT / 'configs' / 'digits' / 'faster-rcnn_r50-thin_fpn_digits.py').model).state_dict()
    with pytest.raises(RuntimeError, match='does not fit the ANN'):
        whole.load_state_dict({key: value for key, value in other.items() if 'roi_head' not in key})


def test_config_of_the_ann_in_it():
    for net in NETS:
        cfg, plain = (Config.fromfile(ROOT / 'configs' / 'digits' / f'{net}_r50-thin_fpn_{kind}digits.py')
                      for kind in ('snn-whole-differential_', ''))
        assert plain_config(cfg).model.to_dict() == plain.model.to_dict()


class Ranks(nn.Module):
    """Branches on numbers of dimensions, before and behind what determines them."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.relu = nn.Conv2d(1, 2, 1), nn.Linear(8, 3), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.conv(x))
        if x.dim() == 4:
            x = torch.flatten(x, 1)
        return self.fc(x.flatten(1)) if x.ndim > 2 else self.relu(self.fc(x))


def test_branches_on_known_ranks_are_traced():
    ann, x = Ranks().eval(), torch.randn(5, 1, 2, 2)
    snn = mmsnn.convert(ann, 2)
    assert len(snn.neurons) == 2
    torch.testing.assert_close(snn.network(x), ann(x))

    class Unknown(Ranks):
        def forward(self, x):
            return super().forward(x if x.dim() == 4 else x[None])

    with pytest.raises(mmsnn.ConversionError, match='control flow'):
        mmsnn.convert(Unknown(), 2)
