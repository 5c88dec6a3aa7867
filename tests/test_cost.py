"""Spikes and synaptic operations, against counts by hand."""
import pytest
import torch

import mmsnn
from mmsnn.analysis.cost import CostCounter

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
    assert counter.cost.per_image() == dict(synaptic_operations=(36 + 72) / 2, spikes_per_neuron=30 / 10,
                                            analog_macs=2, ann_macs=2 + 6 + 12)
    snn(x)
    assert counter.cost.images == 2, 'nothing is counted outside'


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
