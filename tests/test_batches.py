"""Networks of several inputs: calibration batches are tuples, lists or dictionaries."""
import pytest
import torch
from torch import nn

import mmsnn


class Fusion(nn.Module):
    """An image and a depth map, each with a stem of its own."""

    def __init__(self):
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.join, self.head = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, image, depth):
        joined = torch.relu(self.image(image)) + torch.relu(self.depth(depth))
        return self.head(torch.relu(self.join(joined)))


def inputs(count=2):
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, 8, 8, generator=generator), torch.rand(count, 1, 8, 8, generator=generator)


@pytest.mark.parametrize('pipeline', ['signed', 'light', 'advanced', 'spike-norm'])
def test_tuples_lists_and_dictionaries_calibrate_alike(pipeline):
    torch.manual_seed(0)
    ann, thresholds = Fusion().eval(), []
    forms = [lambda pair: pair, list, lambda pair: dict(depth=pair[1], image=pair[0])]
    for form in forms:
        snn = mmsnn.convert(ann, 64)
        mmsnn.calibrate(snn, [form(inputs(2)), form(inputs(3))], pipeline, progress=False,
                        **({'iterations': 3} if pipeline == 'advanced' else {}))
        thresholds.append(torch.cat([neuron.threshold for neuron in snn.neurons.values()]))
        output, expected = snn(*inputs(2)), ann(*inputs(2))
        assert (output - expected).norm() < .2 * expected.norm()
    assert torch.equal(thresholds[0], thresholds[1]) and torch.equal(thresholds[0], thresholds[2])
    with mmsnn.CostCounter(snn) as counter:
        snn(*inputs(2))
    assert counter.cost.images == 2


@pytest.mark.parametrize('batch, message', [
    ((inputs()[0],), 'has 1 inputs, the network takes'), ((*inputs(), torch.rand(2, 1)), 'has 3 inputs'),
    (dict(image=inputs()[0], labels=inputs()[1]), 'Give the inputs alone, without labels'),
    ((inputs()[0], torch.tensor([1, 2])), r'must be a floating-point tensor .*, not \(2,\) of torch.int64'),
    ((), 'not tuple'), (dict(inputs=[], data_samples=[]), 'not list'),
    ((inputs()[0], inputs()[1] / 0), 'holds NaN or infinite values')], ids=
    ['one missing', 'one too many', 'labels', 'classes', 'none', 'data samples', 'infinite'])
def test_other_batches_are_refused_in_one_line(batch, message):
    with pytest.raises(ValueError, match=message) as error:
        mmsnn.calibrate(mmsnn.convert(Fusion(), 4), [inputs(), batch], progress=False)
    assert 'calibration batch 1' in str(error.value) and '\n' not in str(error.value)


def test_images_made_in_inference_mode_calibrate_weights():
    with torch.inference_mode():
        x = torch.randn(2, 3, 8, 8)
    snn = mmsnn.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), 4)
    mmsnn.calibrate(snn, [x], 'advanced', iterations=2, progress=False)
    assert snn.settings['weights']
