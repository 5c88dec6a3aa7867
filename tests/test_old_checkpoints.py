"""What an earlier version calibrated loads, and computes what it computed."""
from pathlib import Path

import pytest
import torch

import mmsnn

from networks import Residual

STORED = Path(__file__).parent / 'calibrated_0.1.0.pth'


@pytest.mark.parametrize('pipeline', ['light', 'advanced', 'signed'])
def test_a_network_calibrated_by_version_0_1(pipeline):
    """Weights and neurons of few bits, so that nothing rounds: outputs are equal whatever the processor."""
    stored = torch.load(STORED, weights_only=True)
    ann = Residual()
    ann.load_state_dict(stored['ann'])
    snn = mmsnn.convert(ann.eval(), 8)
    snn.load_state_dict(stored[pipeline]['state'])
    assert snn.settings['pipeline'] == pipeline and snn.settings['neuron'] == 'integrate-and-fire'
    assert torch.equal(snn(stored['x']), stored[pipeline]['output'])
