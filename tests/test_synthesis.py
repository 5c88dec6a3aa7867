"""Images from a network's own statistics."""
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mmsnn

from networks import Residual, randomise_norms

QUICK = dict(iterations=150, progress=False)


def statistics(ann, images):
    """Mean distance of the inputs of all batch normalisations from their statistics, in standard deviations."""
    found = []
    handles = [norm.register_forward_pre_hook(lambda norm, inputs: found.append(
        ((inputs[0].mean((0, 2, 3)) - norm.running_mean).abs() / norm.running_var.sqrt()).mean()))
        for norm in ann.modules() if isinstance(norm, nn.BatchNorm2d)]
    with torch.no_grad():
        ann(images)
    for handle in handles:
        handle.remove()
    return torch.stack(found).mean().item()


def trained():
    """A network whose statistics are those of some images (not of white noise)."""
    ann = Residual()
    images = torch.randn(64, 3, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3) * .5 + .8
    for _ in range(60):
        ann.train()(images)
    return ann.eval()


def test_statistics_are_met_and_the_network_is_left_alone():
    ann = trained()
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    images = mmsnn.synthesise(ann, 20, (16, 16), batch_size=16, **QUICK)
    assert [len(batch) for batch in images] == [16, 4] and images[0].shape[1:] == (3, 16, 16)
    assert statistics(ann, images[0]) < .3 * statistics(ann, torch.randn(16, 3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in ann.parameters())
    again = mmsnn.synthesise(ann, 20, (16, 16), batch_size=16, **QUICK)
    other = mmsnn.synthesise(ann, 20, (16, 16), batch_size=16, seed=1, **QUICK)
    assert torch.equal(images[1], again[1]) and not torch.equal(images[1], other[1])


def test_images_are_found_in_inference_mode_too():
    ann = Residual()
    with torch.inference_mode():
        images, = mmsnn.synthesise(ann, 2, (8, 8), iterations=2, progress=False)
    assert images.shape == (2, 3, 8, 8) and not images.is_inference()


def test_mode_is_restored_after_an_interruption():
    ann = randomise_norms(Residual()).train()
    with pytest.raises(TypeError):
        mmsnn.synthesise(ann, 2, (16, 'wide'), **QUICK)
    with pytest.raises(RuntimeError):
        mmsnn.synthesise(ann, 2, (16, 16), channels=4, **QUICK)
    assert ann.training and all(parameter.requires_grad for parameter in ann.parameters())


def test_network_without_statistics_is_refused():
    with pytest.raises(ValueError, match='no batch normalisation'):
        mmsnn.synthesise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 2, (8, 8))


def test_hook_calibrates_on_stored_images(tmp_path):
    pytest.importorskip('mmdet')
    sys.path.insert(0, str(Path(__file__).parent.parent / 'tools'))
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.logging import MMLogger

    from mmsnn.files import write_file
    register_all_modules()
    model = nn.ModuleDict(dict(backbone=MODELS.build(dict(
        type='mmsnn.SpikingBackbone', time_steps=2, backbone=dict(type='ResNet', depth=18, base_channels=4,
                                                                  stem_channels=4)))))
    images = mmsnn.synthesise(model.backbone.ann, 6, (32, 32), batch_size=4, iterations=2, progress=False)
    write_file(images, tmp_path / 'images.pth')
    hook = mmsnn.CalibrationHook('light', num_images=5, batch_size=2, images=str(tmp_path / 'images.pth'),
                                 progress=False)
    assert [len(batch) for batch in hook.batches(model, None)] == [2, 2, 1]
    hook.calibrate(model, None, MMLogger.get_current_instance())
    assert model.backbone.calibrated
    hook.num_images = 7
    with pytest.raises(ValueError, match='asks for 7 images'):
        list(hook.batches(model, None))
