"""Draw the figures of docs/how_it_works.md with the package's own neurons, and that of docs/index.md from a table.

    python tools/figures.py
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import torch
from _changes import changes_figure
from _home import home_figure

from mmsnn import FiringRule, clip_floor, clip_round, integrate_and_burst, integrate_and_fire
from mmsnn.analysis.plots import pyplot

THRESHOLD = 1.
CURRENTS = [.75, .75, .75, .75, -.5, -.5, -.25, -.25]  # as where negative weights speak late


def neuron_figure(path: Path) -> tuple[float, float]:
    """Draw currents, potentials and spikes of a plain and of a signed neuron; return what each has put out."""
    plt = pyplot()
    currents = torch.tensor(CURRENTS)[:, None]
    threshold = torch.tensor([THRESHOLD])
    steps = range(1, len(currents) + 1)
    plain, signed = [], []
    potential, other, count = torch.zeros(3, 1)
    rule = FiringRule(signed=True)
    for current in currents:  # one step at a time, to look at the potential in between
        spike = integrate_and_fire(current[None], potential, threshold)
        plain.append((float(potential), float(spike)))
        spike = integrate_and_burst(current[None], other, count, threshold, None, len(CURRENTS), rule)
        signed.append((float(other), float(spike)))
    rectified = max(sum(CURRENTS), 0.)
    figure, axes = plt.subplots(3, 1, figsize=(7, 5.2), sharex=True, layout='constrained')
    axes[0].bar(steps, CURRENTS, color='C7', width=.5)
    axes[0].set_title(f'current; its ReLU over {len(CURRENTS)} steps: {rectified:.1f}', loc='left', fontsize='medium')
    for axis, title, trace in zip(axes[1:], ('plain', 'signed'), (plain, signed)):
        potentials, spikes = zip(*trace)
        axis.step(steps, potentials, where='mid', color='C0', label='potential after the step')
        axis.bar(steps, spikes, color='C1', width=.2, label='spikes')
        axis.axhline(THRESHOLD, color='grey', linestyle=':', label='threshold')
        axis.set_title(f'{title} neuron; its spikes: {sum(spikes):.1f}', loc='left', fontsize='medium')
    for axis in axes:
        axis.axhline(0, color='black', linewidth=.6)
        axis.grid(axis='y', alpha=.3)
    axes[1].legend(fontsize='small', loc='upper right')
    axes[-1].set_xlabel('time step')
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return sum(spike for _, spike in plain), sum(spike for _, spike in signed)


def rate_figure(path: Path, time_steps: int = 4) -> None:
    """Draw the mean output under a constant current, from the closed form and from the simulation, beside ReLU."""
    plt = pyplot()
    current = torch.linspace(-.25, 1.5, 701)
    potential = torch.full_like(current, THRESHOLD / 2)
    spikes = integrate_and_fire(current.expand(time_steps, -1), potential, torch.tensor(THRESHOLD))
    figure, axis = plt.subplots(figsize=(7, 3.6), layout='constrained')
    axis.plot(current, current.relu(), color='grey', linestyle='--', label='ReLU')
    axis.plot(current, clip_floor(current, THRESHOLD, time_steps), label='ClipFloor: starts at zero')
    rounded = clip_round(current, torch.tensor(THRESHOLD), time_steps)
    axis.plot(current, rounded, label='ClipRound: half a threshold more')
    axis.plot(current[::20], spikes.mean(0)[::20], 'k.', markersize=4, label='simulated, starting at half')
    axis.set(xlabel='current', ylabel='mean output', title=f'threshold {THRESHOLD:g}, T = {time_steps}')
    axis.set_ylim(-.05, 1.3)
    axis.grid(alpha=.3)
    axis.legend(fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    images = ROOT / 'docs' / 'images'
    home_figure(images / 'home.png')
    neuron_figure(images / 'neuron.png')
    rate_figure(images / 'rate.png')
    changes_figure(images / 'changes.png')


if __name__ == '__main__':
    main()
