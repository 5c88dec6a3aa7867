"""The figure of how a neuron with differential coding follows its activation; tools/figures.py calls this."""
from pathlib import Path

import torch

from mmsnn.analysis.plots import pyplot
from mmsnn.neurons.differential import Differential

ACTIVATIONS = [5.3] * 4 + [4.1] * 3


def changes_figure(path: Path) -> list[float]:
    """Draw activation, spikes, and their sum, for a threshold of 1; return the spikes."""
    plt = pyplot()
    rule, spikes, sent = Differential(sizes=4), [], []
    state = rule.start(torch.zeros(1), len(ACTIVATIONS))
    for activation in ACTIVATIONS:
        spike, state = rule.step(torch.tensor([activation]), torch.zeros(1), state, torch.ones(1), len(ACTIVATIONS))
        spikes.append(float(spike))
        sent.append(float(state[0]))
    steps = range(1, len(ACTIVATIONS) + 1)
    figure, axis = plt.subplots(figsize=(7, 3.2), layout='constrained')
    axis.step(steps, ACTIVATIONS, where='mid', color='grey', linestyle='--', label='activation of what it has received')
    axis.step(steps, sent, where='mid', color='C0', label='what it has sent')
    axis.bar(steps, spikes, color='C1', width=.2, label='spikes: -8, -4, -2, -1, 1, 2, 4 or 8 thresholds')
    axis.axhline(0, color='black', linewidth=.6)
    axis.set_xlabel('time step')
    axis.grid(axis='y', alpha=.3)
    axis.legend(fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return spikes
