"""What print shows of networks, neurons and pipelines: one line with what matters."""
import math

import pytest
import torch
from torch import nn

import mmsnn
from mmsnn.neurons.differential import Differential
from mmsnn.neurons.pipelines import PIPELINES, make_pipeline

from networks import Residual, Small, randomise_norms


def calibrated(pipeline, network=None, options=None, **choices):
    snn = mmsnn.convert(randomise_norms(network or Residual()).eval(), 8, **options or {})
    mmsnn.calibrate(snn, [torch.randn(2, 3, 16, 16)], pipeline, progress=False, **choices)
    return snn


def test_network():
    snn = mmsnn.convert(Residual().eval(), 8)
    layers = len(snn.neurons)
    assert layers > 1 and repr(snn) == (
        f"SpikingNetwork(time_steps=8, coding='rate', layers={layers}, not calibrated; modules: print(snn.network))")
    snn = calibrated('light')
    values = torch.cat([neuron.threshold for neuron in snn.neurons.values()])
    low, high = f'{values.min().item():.3g}', f'{values.max().item():.3g}'
    assert repr(snn) == (f"SpikingNetwork(time_steps=8, coding='rate', layers={layers}, pipeline='light', "
                         f"thresholds={low} to {high}; modules: print(snn.network))")
    assert 'Conv2d(' in str(snn.network)


def test_network_shows_what_is_not_as_usual():
    snn = calibrated('light', options=dict(dtype='bfloat16', readout='potential', delay=2), rounds=2,
                     learning_rate=.1)
    text = repr(snn)
    assert "pipeline='light', rounds=2, learning_rate=0.1, thresholds=" in text
    assert ", dtype='bfloat16', readout='potential', delay=2;" in text and 'compile' not in text
    snn.compile = True
    assert 'compile=True' in repr(snn)
    assert "coding='differential'" in repr(calibrated('differential'))


def test_network_loaded_under_a_pipeline_that_is_not_known_here(monkeypatch):
    monkeypatch.setitem(PIPELINES, 'own', make_pipeline('none', bias=True, rounds=3))
    snn = calibrated('own')
    assert "pipeline='own', thresholds=" in repr(snn)
    monkeypatch.delitem(PIPELINES, 'own')
    assert "pipeline='own', bias=True, rounds=3, thresholds=" in repr(snn)


def test_neuron():
    neuron = mmsnn.IFNeuron()
    assert repr(neuron) == 'IFNeuron(FiringRule(), threshold=not chosen)'
    neuron = mmsnn.IFNeuron(6.)
    neuron.threshold, neuron.rule = torch.tensor([.5, .25]), mmsnn.FiringRule(signed=True, max_spikes=4)
    assert repr(neuron) == 'IFNeuron(FiringRule(signed=True, max_spikes=4), threshold=0.25 to 0.5, ceiling=6)'
    neuron = mmsnn.IFNeuron(math.inf, nn.SiLU())
    neuron.threshold, neuron.rule = torch.tensor([.125]), Differential(uniform=True)
    assert repr(neuron) == 'IFNeuron(Differential(uniform=True), threshold=0.125, activation=SiLU())'
    assert '(relu): IFNeuron(FiringRule(), threshold=not chosen)' in repr(mmsnn.convert(Small(), 4).network)


def test_pipeline_shows_how_it_differs_from_the_nearest():
    assert repr(mmsnn.Pipeline()) == "make_pipeline('none')"
    assert repr(PIPELINES['signed']) == "make_pipeline('signed')"
    assert repr(make_pipeline('advanced', iterations=200)) == "make_pipeline('advanced', iterations=200)"
    assert repr(mmsnn.Pipeline(tune=[])) == "make_pipeline('none')"  # as read from a file


@pytest.mark.parametrize('name', PIPELINES)
def test_pipeline_can_be_made_from_what_is_shown(name):
    for pipeline in (PIPELINES[name], make_pipeline(name, seed=3, tune=('bias',), rounds=2)):
        assert eval(repr(pipeline), dict(make_pipeline=make_pipeline)) == pipeline
