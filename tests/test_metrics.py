"""The cost of a spiking model as a metric, against counts by hand."""
import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from mmengine.model import BaseModel, BaseTTAModel

import mmsnn
from mmsnn.analysis.cost import CostCounter
from mmsnn.openmmlab.registry import MODELS
from mmsnn.openmmlab.wrapper import SpikingWrapper

from networks import three_layers


class Detector(nn.Module):
    """The three layers of test_cost as a spiking part, and a head of 4 x 2 weights that does not spike."""

    def __init__(self):
        super().__init__()
        self.backbone = SpikingWrapper()
        self.backbone.wrap(three_layers(), time_steps=4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone.snn(x))


def measured(model, batches, **kwargs):
    metric = mmsnn.SpikeMetric(**kwargs)
    metric.watch(model)
    for batch in batches:
        model(batch)
        metric.process({}, [])
    return metric.evaluate(size=100)


def test_costs_by_hand():
    model = Detector()
    images = torch.tensor([1., .5]).view(2, 1, 1, 1)
    model.backbone.calibrate([images], 'maxact', progress=False)
    result = measured(model, [images])
    # See test_cost: 30 spikes of 2 x 5 neurons in 4 steps, 108 synaptic operations, 20 MACs as ANN, 2 of them analog.
    assert result['spike/firing_rate'] == 30 / 40 and result['spike/synaptic_operations'] == 54
    assert (result['spike/analog_macs'], result['spike/ann_macs'], result['spike/other_macs']) == (2, 20, 8)
    assert result['spike/ann_energy'] == pytest.approx((20 + 8) * 4.6e-9)
    assert result['spike/snn_energy'] == pytest.approx((2 + 8) * 4.6e-9 + 54 * .9e-9)
    assert result['spike/energy_ratio'] == pytest.approx(result['spike/snn_energy'] / result['spike/ann_energy'])
    assert result['spike/break_even_rate'] == pytest.approx(4.6 / .9 / 4)
    one_by_one = measured(model, images.split(1))
    assert one_by_one == result, 'a second metric counts anew, and batches add up'
    metric = mmsnn.SpikeMetric()
    metric.watch(model)
    model(images)  # what runs between two tests belongs to neither
    metric.watch(model)
    model(images)
    metric.process({}, [])
    assert metric.evaluate(size=100) == result
    # The backbone's 2 analog MACs and 54 additions (all of size one), and the head's 8 MACs, of 28 as ANN.
    shares = {key.removeprefix('spike/'): value for key, value in result.items() if key.endswith('_share')}
    assert shares == pytest.approx(dict(
        backbone_ann_share=20 / 28, backbone_event_share=(2 + 54 * .9 / 4.6) / 28, head_ann_share=8 / 28,
        head_event_share=8 / 28))
    assert metric.parts['backbone'] == dict(ann_macs=20, analog_macs=2, graded_operations=0, synaptic_operations=54,
                                            event_operations=54)
    cheap = measured(model, [images], mac_energy=1., addition_energy=.5)
    assert cheap['spike/energy_ratio'] == pytest.approx((10 + 54 / 2) / 28)


class Flipped(BaseTTAModel):
    """Sees each image twice."""

    def __init__(self, module):
        BaseModel.__init__(self)
        self.module = module

    def merge_preds(self, data_samples_list):
        raise NotImplementedError

    def forward(self, x):
        return [self.module(x), self.module(x.flip(3))]


def test_parts_have_their_names_under_test_time_augmentation():
    model, images = Detector(), torch.tensor([1., .5]).view(2, 1, 1, 1)
    model.backbone.calibrate([images], 'maxact', progress=False)
    once, twice = measured(model, [images]), measured(Flipped(model), [images])
    assert {key: value for key, value in once.items() if key.endswith('_share')} == {
        key: value for key, value in twice.items() if key.endswith('_share')}
    assert twice['spike/firing_rate'] == once['spike/firing_rate']


class Gated(Detector):
    """A part that some images do not reach, as a mask head where nothing is detected."""

    def forward(self, x):
        return super().forward(x) if x.max() > .9 else None


def test_a_part_that_does_not_see_the_first_image_is_counted():
    model, images = Gated(), torch.tensor([1., .5]).view(2, 1, 1, 1)
    model.backbone.calibrate([images], 'maxact', progress=False)
    result = measured(model, images.split(1))
    assert result['spike/synaptic_operations'] > 0 and measured(model, images.flip(0).split(1)) == result


def test_counting_twice_at_once():
    model = Detector()
    images = torch.ones(2, 1, 1, 1)
    model.backbone.calibrate([images], 'maxact', progress=False)
    metric = mmsnn.SpikeMetric()
    metric.watch(model)
    with CostCounter(model.backbone.snn) as counter:
        model(images)
    metric.process({}, [])
    assert metric.evaluate(size=2)['spike/synaptic_operations'] == counter.cost.per_image()['synaptic_operations']


def test_metric_without_a_model_says_what_to_do():
    with pytest.raises(RuntimeError, match='watches no model'):
        mmsnn.SpikeMetric().process({}, [])
    with pytest.raises(RuntimeError, match='no spiking part'):
        mmsnn.SpikeMetric().watch(nn.Linear(2, 2))


def test_wrapped_modules_are_built_by_name():
    assert {'SpikingBackbone', 'SpikingClassifier', 'TorchClassifier'} <= set(MODELS.module_dict)
