"""Spikes and synaptic operations, against counts by hand."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmsnn
from mmsnn.analysis.cost import CostCounter, together

from networks import three_layers


def test_counts_by_hand():
    snn = mmsnn.convert(three_layers(), 4)
    x = torch.tensor([1., .5]).view(2, 1, 1, 1)
    mmsnn.calibrate(snn, [x], 'maxact', progress=False)  # thresholds 1 and 2
    with CostCounter(snn) as counter:
        snn(x)
    # First image: 2 neurons fire in each of 4 steps, so that currents of 2 let the 3 others fire as often. Second:
    # the 2 fire at steps 2 and 4, the 3 then too.
    assert counter.cost.spikes == {'_1': 2 * 4 + 2 * 2, '_3': 3 * 4 + 3 * 2}
    # Each of the 2 is connected to 3 others, each of the 3 to 4 outputs.
    assert counter.cost.synaptic_operations == {'_1': 12 * 3, '_3': 18 * 4}
    assert counter.cost.neurons == {'_1': 2 * 2, '_3': 2 * 3} and counter.cost.images == 2
    assert counter.cost.per_image() == dict(synaptic_operations=(36 + 72) / 2, event_operations=(36 + 72) / 2,
                                            spikes_per_neuron=30 / 10,
                                            analog_macs=2, ann_macs=2 + 6 + 12, graded_operations=0)
    snn(x)
    assert counter.cost.images == 2, 'nothing is counted outside'


def test_outputs_at_several_steps_cost_one_simulation():
    snn = mmsnn.convert(three_layers(), 4)
    x = torch.tensor([1., .5]).view(2, 1, 1, 1)
    mmsnn.calibrate(snn, [x], 'maxact', progress=False)
    costs = []
    for steps in ([4], [1, 2, 4], [1, 2]):
        with CostCounter(snn) as counter:
            snn.anytime(steps, x)
        costs.append(counter.cost)
    assert costs[0] == costs[1] and costs[0].synaptic_operations == {'_1': 12 * 3, '_3': 18 * 4}
    # As far as it was simulated: the second image fires at step 2 alone, in both layers.
    assert costs[2].images == 2 and costs[2].spikes == {'_1': 2 * 2 + 2, '_3': 3 * 2 + 3}


def test_operations_by_layer():
    snn = mmsnn.convert(three_layers(), 4)
    x = torch.tensor([1., .5]).view(2, 1, 1, 1)
    mmsnn.calibrate(snn, [x], 'maxact', progress=False)
    with CostCounter(snn) as counter:
        snn(x)
    # As above, where they take place: the first layer sees the image, the others what it is connected to.
    layers = list(counter.cost.layers.values())
    assert [layer['ann_macs'] for layer in layers] == [2 * 2, 2 * 6, 2 * 12]
    assert [layer['analog_macs'] for layer in layers] == [4, 0, 0]
    assert [layer['synaptic_operations'] for layer in layers] == [0, 12 * 3, 18 * 4]
    assert [layer['event_operations'] for layer in layers] == [0, 12 * 3, 18 * 4]


def test_layers_that_read_no_spikes_multiply_at_each_step():
    """In a rate code two layers in a row: the second reads what the first gives, sums of weighted spikes."""
    ann = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1))
    x = torch.rand(1, 1, 1, 1)

    def cost(coding, pipeline):
        snn = mmsnn.convert(ann, 5, coding=coding)
        mmsnn.calibrate(snn, [x], pipeline, progress=False)
        with CostCounter(snn) as counter:
            snn(x)
        return counter.cost

    rate = cost('rate', 'light')
    assert rate.graded_operations == 3 * 4 * 5 and rate.layers['3']['graded_operations'] == 3 * 4 * 5
    assert rate.ann_macs == 2 + 6 + 12 and rate.layers['3']['synaptic_operations'] == 0
    # Neurons of the identity stand in between.
    assert cost('differential', 'differential').graded_operations == 0


def test_negative_spikes_count_as_one_and_bursts_as_their_size():
    neuron = mmsnn.IFNeuron()
    neuron.threshold, neuron.bias = torch.tensor([.5]), torch.zeros(1)
    neuron.rule, neuron.time_steps = mmsnn.FiringRule(signed=True, max_spikes=2), 4
    snn = mmsnn.convert(three_layers(), 4)
    counter = CostCounter(snn)
    neuron.recorders.append(counter._recorder('layer'))
    currents = torch.tensor([1., -.5, .5, 0.]).view(4, 1, 1, 1, 1)
    spikes, _ = neuron.fire(currents, neuron.start(currents[0]))
    assert spikes.flatten().tolist() == [1., -.5, .5, 0.]
    assert counter.cost.spikes == {'layer': 2 + 1 + 1}


@pytest.mark.parametrize('depth', [18, 50])
def test_macs_of_the_ann_agree_with_mmengine(depth):
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.analysis import get_model_complexity_info
    register_all_modules()
    ann = MODELS.build(dict(type='ResNet', depth=depth, base_channels=8, stem_channels=8))
    ann.train(False)
    snn = mmsnn.convert(ann, 2)
    x = torch.randn(1, 3, 64, 96)
    mmsnn.calibrate(snn, [x], 'none', progress=False)
    with CostCounter(snn) as counter:
        snn(x)
    # mmengine counts a multiply-accumulate as one and adds batch normalisation, which is folded here.
    reference = get_model_complexity_info(snn.network, inputs=(x,), show_table=False, show_arch=False)['flops']
    assert counter.cost.ann_macs == pytest.approx(reference, rel=.02)


class Same(nn.Conv2d):
    """TensorFlow-like padding: traced into, it becomes a function."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.ConvTranspose2d):
    def forward(self, x):
        return F.conv_transpose2d(x, self.weight - self.weight.mean(), self.bias, self.stride, self.padding)


class Mixed(nn.Module):
    """Matrix products with weights from the image, which stay functions, behind a normalisation that is not folded."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(F.relu(x).flatten(2)) @ x.flatten(2).mT


class Parts(nn.Module):
    """The halves of its channels, each of which a layer of its own reads, and one of them another as well."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.both = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        left, right = x.chunk(2, 1)
        return self.left(left).sum() + self.right(x[:, 2:]).sum() + self.both(torch.cat([right, left], 1))


class Pyramid(nn.Module):
    """A value beside what pooling makes of it, as in spatial pyramid pooling."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.conv(torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1))


# Layers behind a ReLU with what each of its neurons is connected to on average, and MACs, for images of one size.
BY_HAND = {
    # 6 channels of 5 x 5; stride 2 on the 6 x 6 padded gives 3 x 3 with a kernel of 2: 4 outputs of 2 x 2 x 3 inputs.
    'padded, strided, grouped': (Same(6, 4, 2, stride=2, groups=2), (6, 5, 5), 3 * 3 * 4 * (2 * 2 * 3)),
    # Each of 2 x 4 x 4 inputs goes to 3 channels of 3 x 3 positions.
    'transposed': (Standardised(2, 3, 3, stride=2), (2, 4, 4), 2 * 4 * 4 * 3 * 3 * 3),
    'transposed, grouped': (nn.ConvTranspose2d(4, 6, 2, groups=2), (4, 3, 3), 4 * 3 * 3 * 3 * 2 * 2),
    # 5 channels of 2 x 2 x 2, each of 3 channels x 27.
    'three dimensions': (nn.Conv3d(3, 5, 3), (3, 4, 4, 4), 5 * 8 * 3 * 27),
    'three dimensions, transposed': (nn.ConvTranspose3d(3, 2, 2), (3, 2, 2, 2), 3 * 8 * 2 * 8),
    'one dimension': (nn.Conv1d(2, 3, 5), (2, 9), 3 * 5 * 2 * 5),
    # Each element of 2 x 3 x 3 becomes four, each of which 5 outputs of 6 x 6 read.
    'upsampled': (nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 5, 1)), (2, 3, 3), 5 * 6 * 6 * 2),
    # Of 4 channels of 3 x 3, two are connected to 3 outputs, two to 5, and all to 2.
    'parts': (Parts(), (4, 3, 3), 3 * 3 * (2 * 3 + 2 * 5 + 4 * 2)),
    # Each of 2 x 3 x 3 is connected to 5 outputs, directly and once more by way of the maxima.
    'two ways': (Pyramid(), (2, 3, 3), 3 * 3 * 4 * 5),
    'product with the image': (Mixed(), (6, 2, 2), 6 * 6 * 4)}


@pytest.mark.parametrize('layer, shape, macs', BY_HAND.values(), ids=BY_HAND)
def test_functions_and_layers_of_all_dimensions_count_as_by_hand(layer, shape, macs):
    ann, x = nn.Sequential(nn.Identity() if isinstance(layer, Mixed) else nn.ReLU(), layer), torch.rand(2, *shape)
    snn = mmsnn.convert(ann, 8)
    mmsnn.calibrate(snn, [x], 'none', progress=False)
    with CostCounter(snn) as counter:
        snn(x)
    (spikes,), (operations,) = counter.cost.spikes.values(), counter.cost.synaptic_operations.values()
    assert spikes > 0 and counter.cost.ann_macs == 2 * macs and counter.cost.analog_macs == 0
    assert operations == pytest.approx(spikes * macs / x[0].numel())


def test_pairs_of_images_in_a_batch_are_counted():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            left, right = F.relu(self.conv(x)).mean((2, 3)).chunk(2)
            return self.fc(left - right)

    snn, x = mmsnn.convert(Siamese(), 4, chunk_steps=1), torch.rand(6, 3, 2, 2)
    mmsnn.calibrate(snn, [x], 'none', progress=False)
    with CostCounter(snn) as counter:
        snn(x)
    assert (counter.cost.images, counter.cost.analog_macs) == (6, 6 * 4 * 4 * 3)
    assert counter.cost.ann_macs - counter.cost.analog_macs == 3 * 4 * 2


def test_metric_counts_subclasses_by_hand():
    pytest.importorskip('mmengine')
    from mmsnn.openmmlab.wrapper import SpikingWrapper
    torch.manual_seed(0)
    model, x = SpikingWrapper(), torch.rand(3, 3, 5, 5)
    model.wrap(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Same(4, 6, 2), nn.ReLU(), Same(6, 2, 2, stride=2)),
               time_steps=8)
    model.calibrate([x], 'none', progress=False)
    metric = mmsnn.SpikeMetric()
    metric.watch(model)
    with CostCounter(model.snn) as counter:
        model.simulate(x)
    metric.process({}, [])
    result = metric.evaluate(size=3)
    # Maps of 5 x 5, padded to 6 x 6, give 5 x 5 with stride 1 and 3 x 3 with stride 2.
    second, third = 5 * 5 * 6 * 4 * 4, 3 * 3 * 2 * 6 * 4
    assert result['spike/analog_macs'] == 5 * 5 * 4 * 3
    assert result['spike/ann_macs'] == 5 * 5 * 4 * 3 + second + third
    first, last = counter.cost.spikes.values()
    assert first > 0 and last > 0
    assert result['spike/synaptic_operations'] == pytest.approx((first * second / 100 + last * third / 150) / 3)


def test_parts_together_cost_what_they_cost_apart():
    ann, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 2)).eval(), torch.rand(5, 2)
    snn = mmsnn.convert(ann, 4)
    mmsnn.calibrate(snn, [x], 'light', progress=False)
    with CostCounter(snn) as counter:
        snn(x)
    one, both = counter.cost, together([counter.cost, counter.cost])
    assert one.graded_operations > 0, 'the last layer reads no spikes'
    for name in ('graded_operations', 'analog_macs', 'ann_macs'):
        assert getattr(both, name) == 2 * getattr(one, name)
    assert {layer: both.layers[layer] for layer in one.layers} == one.layers and len(both.layers) == 2 * len(one.layers)
    assert both.per_image()['event_operations'] == pytest.approx(2 * one.per_image()['event_operations'])
