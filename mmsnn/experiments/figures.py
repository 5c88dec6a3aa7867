"""The figures of a report, each for a light and a dark page."""
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

from ..progress import progress_bar
from .methods import readable
from .sweep import summarise

THEMES: dict[str, dict] = dict(
    light={'figure.facecolor': '#ffffff', 'axes.facecolor': '#ffffff', 'savefig.facecolor': '#ffffff'},
    dark={'figure.facecolor': '#181c22', 'axes.facecolor': '#181c22', 'savefig.facecolor': '#181c22',
          'legend.facecolor': '#181c22', 'legend.edgecolor': '#3a424d', 'grid.color': '#59626e',
          **dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color'),
                          '#d5dae0')})
MOST_STAGES = 9  # whose names have room on an axis
STAGES = re.compile(r'(layer|stage|block|conv_layer)\d+|features|neck|fpn|pafpn|(\w*_)?head')
NUMBERED = 'layer', 'layers', 'stage', 'stages', 'block', 'blocks'  # followed by a number of its own


def stages(names: Iterable[str]) -> list[tuple[str, int, int]]:
    """The stages of a network, from the names of its layers of neurons in order: name, first and last layer, from 1 on.

    Names are as in the traced graph: ``layer1_0_relu``, ``backbone_layer1_0_relu``. What comes before the first stage
    is the ``stem``; what belongs to none behind it, as sums do, to the stage around it, or else to the ``head``. None
    at all where there are too many to name.
    """
    found: list[str] = []
    for name in names:
        words = re.split(r'[._]', name)
        stage = 'stem' if set(found) <= {'stem'} else ''
        for word, following in zip(words, [*words[1:], '']):
            if word in NUMBERED and following.isdigit():
                stage = f'{word} {following}'
            elif STAGES.fullmatch(word):
                stage = word
            else:
                continue
            break
        found.append(stage)
    around = [(before, next(filter(None, found[place:]), '')) for place, before in enumerate(found)]
    for place, (stage, behind) in enumerate(around):
        if not stage:
            found[place] = behind if behind == found[place - 1] else 'head'
    groups, start = [], 1
    for stage, members in groupby(found):
        end = start + len(list(members))
        groups.append((stage, start, end - 1))
        start = end
    return groups if len(groups) <= MOST_STAGES else []


def draw_figures(folder: Path, ann: dict, rows: list[dict], first: dict, steps: list[int], metric: str) -> dict:
    """Draw every figure for a light and a dark page; return their names and the two files."""
    from ..analysis import plots
    _, curves, _ = summarise([ann, *rows], metric)
    names = list(dict.fromkeys(name for name, _ in first))
    named = readable(names)
    some = next(iter(first.values()))
    staged = stages(layer['name'] for layer in some['layers'])

    def errors(time_steps: int) -> dict:
        found = {}
        for name in names:
            states = {state: [layer[state] for layer in first[name, time_steps]['layers']]
                      for state in ('before', 'after')}
            if states['before'] == states['after']:
                states = dict(before=states['before'])
            found[named[name]] = {f'{state} calibration': boxes for state, boxes in states.items()}
        return found

    rates = {named[name]: {f'T = {t}': [layer['firing_rate'] for layer in first[name, t]['layers']] for t in steps}
             for name in names}
    energy = {'ANN': energy_parts(some, True)} | {f'{named[name]}, T = {t}': energy_parts(row)
                                                  for (name, t), row in first.items()}
    own = plots.colors_of(named.values())
    colors = {f'{named[name]}, T = {t}': own[named[name]] for name, t in first}
    macs = rows[0]['ann_macs']
    todo: dict[str, Callable] = dict(
        scores=lambda path: plots.plot_comparison(curves, ann[metric], macs, path, metric))
    todo |= {f'errors-{t}': lambda path, t=t: plots.plot_errors(errors(t), path, staged) for t in steps}
    todo |= dict(rates=lambda path: plots.plot_layers(rates, path, 'spikes per neuron and time step', staged),
                 energy=lambda path: plots.plot_energy(energy, path, colors))
    if 'threshold_shares' in ann:
        todo['thresholds'] = lambda path: plots.plot_thresholds(ann['threshold_steps'], ann['threshold_shares'], path,
                                                                staged)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, Path]] = {}
    for name, draw in progress_bar(todo.items(), 'figures'):
        for theme, style in THEMES.items():
            path = folder / f'{name}{"" if theme == "light" else "-dark"}.png'
            with plots.pyplot().rc_context(style):
                draw(path)
            figures.setdefault(name, {})[theme] = path
    return figures


def energy_parts(row: dict, ann: bool = False) -> dict[str, float]:
    """What SpikeMetric's estimate of the energy consists of, millijoule per image; a spike of any size is one addition.
    """
    from ..openmmlab.metrics import ADDITION_PICOJOULE, MAC_PICOJOULE
    macs = row['spike/ann_macs'] if ann else row['spike/analog_macs'] + row['spike/graded_operations']
    parts = {'multiply-accumulates': macs * MAC_PICOJOULE * 1e-9,
             'those of parts that never spike': row['spike/other_macs'] * MAC_PICOJOULE * 1e-9}
    if not ann:
        parts['additions caused by spikes'] = row['spike/event_operations'] * ADDITION_PICOJOULE * 1e-9
    return parts
