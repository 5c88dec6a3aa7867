"""Configs of whole detectors of the zoo: each converts, calibrates and evaluates on real digits (random weights)."""
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmsnn.openmmlab.detector import dense_modules
from mmsnn.openmmlab.hooks import plain_config
from mmsnn.openmmlab.parts import blank_samples
from mmsnn.openmmlab.wrapper import spiking_parts
from mmsnn.simulation.plan import is_neuron
from mmsnn.simulation.weighted import weighted_input

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
CONFIGS = sorted((ROOT / 'configs').glob('*/*_snn-whole-differential_coco.py'))
CHANNELS = 'in_channels', 'out_channels', 'feat_channels', 'fc_out_channels', 'conv_out_channels'

register_all_modules()


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    from make_digits import make_digits
    folder = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(folder, train=2, val=1, test=1)
    return folder


def changed(config, **values):
    """Set entries wherever a (nested) config has them; a function makes the new value out of the old one."""
    children = config.values() if isinstance(config, dict) else config if isinstance(config, list) else []
    for child in children:
        changed(child, **values)
    if isinstance(config, dict):
        for key in values.keys() & config.keys():
            config[key] = values[key](config[key]) if callable(values[key]) else values[key]


def a_quarter(channels):
    return [each // 4 for each in channels] if isinstance(channels, list) else channels // 4


def config_of(path, digits, folder):
    """A config of the zoo for digits: small images, two of each set, and a quarter of the channels of a ResNet."""
    cfg = Config.fromfile(path)
    detector = cfg.model.detector
    cfg.model.time_steps = 8
    changed(detector, num_classes=10, score_thr=0.)  # keep something to evaluate
    if detector.backbone.type == 'ResNet':
        detector.backbone.base_channels = 16
        for name in detector.keys() - {'backbone'}:
            changed(detector[name], **dict.fromkeys(CHANNELS, a_quarter))
    detector.backbone.init_cfg = None
    # More sizes than trained networks need: random weights amplify what rounding leaves.
    cfg.custom_hooks[0].update(num_images=2, sizes=12, threshold='max', progress=False)
    inner = cfg.train_dataloader.dataset
    # The same two images in both: random weights make other values of others, which largest activations do not cover.
    for dataset in (inner.get('dataset', inner), cfg.test_dataloader.dataset):
        dataset.update(data_root=f'{digits}/', ann_file='train.json', data_prefix=dict(img='train/'),
                       metainfo=dict(classes=tuple('0123456789')))
    changed(cfg.test_dataloader.dataset.pipeline, with_mask=False)
    if 'ssd' in path.name:  # its head fits images of one size only: one of them
        cfg.custom_hooks[0].num_images = cfg.test_dataloader.dataset.indices = 1
    else:
        changed(cfg.test_dataloader.dataset.pipeline, scale=(128, 128), size=(128, 128))
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=1)
    cfg.test_evaluator = [dict(type='CocoMetric', ann_file=f'{digits}/train.json', metric='bbox'),
                          dict(type='mmsnn.SpikeMetric')]
    cfg.work_dir, cfg.load_from, cfg.log_level = str(folder), str(folder / 'ann.pth'), 'WARNING'
    return cfg


@torch.no_grad()
def settled(detector, x):
    """The detector with random weights, and statistics as of training on ``x``.

    Norms scale by an eighth and add one half: random networks that only normalise amplify any difference, trained ones
    do not.
    """
    detector.init_weights()
    for module in detector.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            if module.bias is not None:
                nn.init.normal_(module.bias, std=.1)
                if len(module.bias) == 4:  # distances to the sides of a box: mmdet drops boxes of negative width
                    module.bias.data += 4
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            nn.init.constant_(module.weight, .125)
            nn.init.constant_(module.bias, .5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum, module.training = 1., True
    x = detector.data_preprocessor(x, False)['inputs']
    for name in dense_modules(detector):
        x = getattr(detector, name)(x)
    return detector


def weights_read_spikes_or_the_image(network):
    """Whether every weighted layer reads nothing but neurons, or nothing but the input."""
    nodes = set(network.graph.nodes)
    for node in network.graph.nodes:
        stack, sources = [weighted_input(node, nodes)], set()
        while stack:
            value = stack.pop()
            if value is None or value.op == 'get_attr':
                continue
            if is_neuron(value) or value.op == 'placeholder':
                sources.add(value.op)
            elif weighted_input(value, nodes) is not None or isinstance(network.get_submodule(
                    str(value.target)) if value.op == 'call_module' else None, nn.GroupNorm):
                return False
            else:
                stack += value.all_input_nodes
        if len(sources) > 1:
            return False
    return True


def flat(value):
    return value.flatten() if isinstance(value, torch.Tensor) else torch.cat([flat(each) for each in value])


def raw_errors(part, x):
    """Relative error of each raw output of a spiking part."""
    with torch.no_grad():
        expected, found = part.ann(x), part.simulate(x)
    if getattr(part.ann, 'head', None):
        expected, found = expected[1], found[1]  # beside the feature maps
    if isinstance(expected, torch.Tensor):
        expected, found = [expected], [found]
    return [float((flat(other) - flat(one)).norm() / flat(one).norm())
            for one, other in zip(expected, found, strict=True)]


def test_there_is_a_config_for_each_detector():
    assert {path.stem.split('_')[0] for path in CONFIGS} == {
        'retinanet', 'fcos', 'atss', 'gfl', 'ssd300', 'yolov3', 'yolox', 'rtmdet', 'faster-rcnn', 'cascade-rcnn',
        'mask-rcnn'}
    for path in CONFIGS:
        cfg = Config.fromfile(path)
        assert cfg.load_from.startswith('https://download.openmmlab.com/mmdetection/')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem.removesuffix('_snn-whole-differential_coco'))
def test_a_detector_of_the_zoo_from_calibration_to_map(path, digits, tmp_path):
    cfg = config_of(path, digits, tmp_path)
    batch = next(iter(Runner.build_dataloader(cfg.test_dataloader)))
    ann = settled(MODELS.build(plain_config(cfg).model), batch)
    torch.save(dict(state_dict=ann.state_dict()), cfg.load_from)
    runner = Runner.from_cfg(cfg)
    parts, received = spiking_parts(runner.model), {}
    for part in parts.values():
        part.register_forward_pre_hook(lambda part, inputs: received.update({part: inputs[0]}))
    metrics = runner.test()
    assert 'coco/bbox_mAP' in metrics
    errors = {name: raw_errors(part, received[part]) for name, part in parts.items()}
    assert all(weights_read_spikes_or_the_image(part.snn.network) for part in parts.values())
    assert metrics['spike/other_macs'] == 0 and metrics['spike/analog_macs'] < .1 * metrics['spike/ann_macs']
    assert max(map(max, errors.values())) < .02, errors


def test_of_detr_backbone_and_neck_spike():
    import mmdet
    detector = Config.fromfile(str(Path(mmdet.__file__).parent / '.mim' / 'configs' / 'detr'
                                   / 'detr_r50_8xb2-150e_coco.py')).model
    detector.backbone.update(depth=18, base_channels=8, init_cfg=None)
    detector.neck.in_channels = [64]
    for stack in (detector.encoder, detector.decoder):
        stack.num_layers = 1
    options = dict(type='mmsnn.SpikingDetector', time_steps=4, coding='differential', detector=detector)
    with pytest.raises(ValueError, match=r"parts must be some of \['backbone', 'neck'\] of DETR"):
        MODELS.build(dict(options, parts=['backbone', 'neck', 'bbox_head']))
    model = MODELS.build(options).eval()
    ((name, part),) = spiking_parts(model).items()
    assert name == 'backbone_neck'
    images = torch.randn(1, 3, 64, 96)
    part.calibrate([images], 'differential', sizes=8, threshold='max', progress=False)

    def found(runs_as):
        part.runs_as = runs_as
        with torch.no_grad():
            (sample,) = model(images, blank_samples(images), mode='predict')
        return sample.pred_instances

    torch.testing.assert_close(found('snn').scores, found('ann').scores, rtol=.05, atol=0)
