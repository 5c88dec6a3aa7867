"""Networks of other families: residual, grouped, depthwise, dense, shuffled and branching, with and without norm."""
import pytest
import torch

import mmsnn

from networks import randomise_norms

models = pytest.importorskip('torchvision.models')


@pytest.mark.parametrize('name, layers', [
    ('vgg11', 10), ('vgg11_bn', 10), ('alexnet', 7), ('mobilenet_v2', 35), ('mnasnet0_5', 35), ('regnet_x_400mf', 67),
    ('resnext50_32x4d', 49), ('shufflenet_v2_x0_5', 37), ('squeezenet1_0', 26), ('googlenet', 57),
    ('densenet121', 121)])
def test_classifiers_convert_exactly_and_spike(name, layers):
    options = dict(aux_logits=False, init_weights=False) if name == 'googlenet' else {}
    ann, x = randomise_norms(getattr(models, name)(**options)).eval(), torch.randn(1, 3, 64, 64)
    snn = mmsnn.convert(ann, time_steps=2)
    with torch.no_grad():
        torch.testing.assert_close(snn.network(x), ann(x), rtol=1e-3, atol=1e-4)
    assert len(snn.neurons) == layers
    mmsnn.calibrate(snn, [x], 'light', progress=False)
    output = snn(x)
    assert output.shape == (1, 1000) and torch.isfinite(output).all()


@pytest.mark.parametrize('name, refused', [
    ('mobilenet_v3_small', 'Hardswish'), ('efficientnet_b0', 'SiLU'), ('convnext_tiny', 'GELU'),
    ('regnet_y_400mf', 'scale_activation: Sigmoid')])
def test_other_activations_are_refused_by_name(name, refused):
    with pytest.raises(mmsnn.ConversionError, match=refused):
        mmsnn.convert(getattr(models, name)(), time_steps=2)
