"""Figures. Matplotlib is imported where it is needed: nothing else depends on it.

A colour means one thing, in all figures of a page: each method has its own (:func:`colors_of`), its shades are numbers
of time steps, and grey is what belongs to no method. Green, red and orange are left to pictures, for detections.
"""
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

PALETTE = '#1f6fb2', '#a8399a', '#13918f', '#7a5c2e', '#6a51c7', '#5c7a99'
MARKERS = 'osD^vP'
GREYS = '#6b7280', '#b3b9c2'


def colors_of(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method, by the order in which they come."""
    return {method: PALETTE[number % len(PALETTE)] for number, method in enumerate(dict.fromkeys(methods))}


def shade(color: str, share: float):
    """A colour mixed with the page's own: ``share`` from 0, the page, to 1, the colour."""
    from matplotlib.colors import to_rgb
    page = to_rgb(pyplot().rcParams['figure.facecolor'])
    return tuple(share * own + (1 - share) * other for own, other in zip(to_rgb(color), page))


def patches(colors: Iterable[str]) -> tuple:
    """What a legend shows of something that has several colours, each once; draw it with :func:`many_colors`."""
    return tuple(pyplot().Rectangle((0, 0), 1, 1, facecolor=color) for color in dict.fromkeys(colors))


def many_colors() -> dict:
    from matplotlib.legend_handler import HandlerTuple
    return {tuple: HandlerTuple(ndivide=None, pad=0)}


def mark_stages(axis, stages: Sequence[tuple[str, int, int]]) -> None:
    """Name the stages of a network on an axis of layers, numbered from 1, instead of the numbers.

    Args:
        axis: of matplotlib.
        stages: name, first and last layer of each.
    """
    axis.set_xticks([(first + last) / 2 for _, first, last in stages], [name for name, *_ in stages])
    axis.tick_params(axis='x', length=0)
    for _, first, _ in stages[1:]:
        axis.axvline(first - .5, color=GREYS[1], linewidth=.8)
    axis.set_xlim(.3, stages[-1][2] + .7)


def pyplot():
    """matplotlib.pyplot, drawing to files; whoever draws already, such as a notebook, goes on as before."""
    if 'matplotlib.pyplot' not in sys.modules:
        import matplotlib
        matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    return plt


def plot_against_time_steps(curves: Mapping[str, Mapping[str, Sequence[tuple[float, ...]]]],
                            references: Mapping[str, float], path: str | Path, ylabel: str) -> None:
    """Draw a score against the number of time steps: one panel per model, one line per method.

    Args:
        curves: model -> method -> (time steps, score) pairs, or (time steps, score, standard deviation).
        references: model -> score of its ANN, drawn as a dashed line.
        path: image file to write.
        ylabel: what the score is.
    """
    plt = pyplot()
    colors = colors_of(method for methods in curves.values() for method in methods)
    figure, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4.2), squeeze=False, sharey=True,
                                layout='constrained')
    for axis, (model, methods) in zip(axes[0], curves.items()):
        if model in references:
            axis.axhline(references[model], color='black', linestyle='--', linewidth=1, label='ANN')
        for method, points in methods.items():
            steps, scores, *deviations = zip(*sorted(points))
            axis.errorbar(steps, scores, *deviations, marker='o', capsize=3, label=method, color=colors[method])
        ticks = sorted({point[0] for points in methods.values() for point in points})
        axis.set_xscale('log', base=2)
        axis.set_xticks(ticks, map(str, ticks))
        axis.set(title=model, xlabel='time steps T')
        axis.grid(alpha=.3)
    axes[0][0].set_ylabel(ylabel)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc='outside lower center', ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_comparison(curves: Mapping[str, Sequence[tuple[float, float, float, float, float]]], reference: float,
                    macs: float | None, path: str | Path, ylabel: str) -> None:
    """Draw the scores of several methods against the number of time steps, and against what they cost.

    Args:
        curves: method -> (time steps, score, standard deviation, synaptic operations per image by events, by size).
        reference: score of the ANN, drawn as a dashed line.
        macs: multiply-accumulate operations of the ANN per image, drawn as a vertical line.
        path: image file to write.
        ylabel: what the score is.
    """
    plt = pyplot()
    figure, (by_steps, *by_cost) = plt.subplots(1, 3, figsize=(14, 4.4), sharey=True, layout='constrained')
    for axis in (by_steps, *by_cost):
        axis.axhline(reference, color=plt.rcParams['text.color'], linestyle='--', linewidth=1,
                     label='ANN' if axis is by_steps else None)
        axis.set_xscale('log', base=2)
        axis.grid(alpha=.3)
    for (method, color), marker in zip(colors_of(curves).items(), cycle(MARKERS)):
        steps, scores, deviations, *costs = zip(*sorted(curves[method]))
        by_steps.errorbar(steps, scores, deviations, marker=marker, capsize=3, label=method, color=color)
        for axis, operations in zip(by_cost, costs):
            axis.errorbar([x / 1e6 for x in operations], scores, deviations, marker=marker, capsize=3, color=color)
    ticks = sorted({point[0] for points in curves.values() for point in points})
    by_steps.set_xticks(ticks, map(str, ticks))
    by_steps.set(xlabel='time steps T', ylabel=ylabel)
    for axis, what in zip(by_cost, ('by events', 'by size')):
        axis.xaxis.set_major_formatter('{x:g}')
        axis.set(xlabel=f'synaptic operations per image, millions, {what}')
        if macs is not None:
            label = 'MACs of the ANN' if axis is by_cost[0] else None
            axis.axvline(macs / 1e6, color=GREYS[0], linestyle=':', label=label)
    figure.legend(loc='outside lower center', ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_errors(panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float | None]]]], path: str | Path,
                stages: Sequence[tuple[str, int, int]] = ()) -> None:
    """Draw the relative errors of the channels of every layer as boxes [Figs. 2 and 5], one panel per method.

    Box from the 25 % to the 75 % quantile with a line at the median, whiskers at 5 % and 95 %, mean as a triangle.

    Args:
        panels: method -> name of a state (before and after calibration) -> for each layer the statistics that
            :func:`mmsnn.analysis.errors.box` returns. The last state has the method's colour, one before it is grey.
        path: image file to write.
        stages: of the network; see :func:`mark_stages`.
    """
    plt = pyplot()
    layers = max(len(boxes) for states in panels.values() for boxes in states.values())
    figure, axes = plt.subplots(len(panels), 1, figsize=(11, 1 + 2.3 * len(panels)), squeeze=False, sharex=True,
                                sharey=True, layout='constrained')
    states_drawn = list(dict.fromkeys(state for states in panels.values() for state in states))
    for axis, (method, own) in zip(axes[:, 0], colors_of(panels).items()):
        states = panels[method]
        width = .8 / len(states)
        for number, (state, boxes) in enumerate(states.items()):
            color = own if state == states_drawn[-1] else GREYS[1]
            drawn = [(index, values) for index, values in enumerate(boxes, 1) if values['count']]
            axis.bxp([dict(med=v['median'], q1=v['q25'], q3=v['q75'], whislo=v['q05'], whishi=v['q95'], mean=v['mean'])
                      for _, v in drawn], [index + (number + .5) * width - .4 for index, _ in drawn],
                     widths=.8 * width, showfliers=False, showmeans=True, patch_artist=True, manage_ticks=False,
                     boxprops=dict(facecolor=color, edgecolor=color, alpha=.8),
                     whiskerprops=dict(color=color), capprops=dict(color=color),
                     medianprops=dict(color=plt.rcParams['text.color'], linewidth=1.5),
                     meanprops=dict(marker='^', markersize=4, markeredgecolor='none',
                                    markerfacecolor=plt.rcParams['text.color']))
        axis.set_yscale('log')
        axis.set_title(method, loc='left')
        axis.grid(axis='y', alpha=.3)
        if stages:
            mark_stages(axis, stages)
        else:
            axis.set_xlim(.3, layers + .7)
            axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes[-1][0].set_xlabel('layers of neurons, from the image on')
    figure.supylabel('relative error of a channel')
    handles = [patches([GREYS[1]] if state != states_drawn[-1] else colors_of(panels).values())
               for state in states_drawn]
    handles.append(plt.Line2D([], [], linestyle='', marker='^', markersize=5, color=plt.rcParams['text.color']))
    figure.legend(handles, [*states_drawn, 'mean'], loc='outside upper right', ncols=len(handles),
                  handler_map=many_colors())
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_layers(panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, ylabel: str,
                stages: Sequence[tuple[str, int, int]] = ()) -> None:
    """Draw one value per layer of neurons, such as firing rates [Fig. 6]: a panel per method, a line per curve.

    Curves are shades of the method's colour, the last one the colour itself; ``stages``: see :func:`mark_stages`.
    """
    plt = pyplot()
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, .7 + 2.1 * len(panels)), squeeze=False, sharey=True,
                                sharex=True, layout='constrained')
    for axis, (method, color) in zip(axes[:, 0], colors_of(panels).items()):
        curves = panels[method]
        for number, (label, values) in enumerate(curves.items(), 1):
            axis.plot(range(1, len(values) + 1), values, marker='.', linewidth=1.5, label=label,
                      color=shade(color, .25 + .75 * number / len(curves)))
        axis.set_title(method, loc='left')
        axis.grid(axis='y', alpha=.3)
        axis.legend(loc='center left', bbox_to_anchor=(1, .5))
        if stages:
            mark_stages(axis, stages)
        else:
            axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes[-1][0].set_xlabel('layers of neurons, from the image on')
    axes[0][0].set_ylim(bottom=0)
    figure.supylabel(ylabel)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_thresholds(time_steps: Sequence[int], shares: Mapping[str, Sequence[float]], path: str | Path,
                    stages: Sequence[tuple[str, int, int]] = ()) -> None:
    """Draw the threshold of each layer, as a share of its largest activation, against T [Fig. 4], a panel per stage."""
    plt = pyplot()
    values = list(shares.values())
    stages = stages or [('all layers', 1, len(values))]
    figure, axes = plt.subplots(1, len(stages), figsize=(max(6, 1.2 + 1.9 * len(stages)), 3.4), squeeze=False,
                                sharey=True, layout='constrained')
    for axis, (name, first, last) in zip(axes[0], stages):
        for curve in values[first - 1:last]:
            axis.plot(time_steps, curve, color=GREYS[0], marker='.', linewidth=1)
        axis.set_xscale('log', base=2)
        shown = time_steps[::4] if len(time_steps) > 5 else time_steps
        axis.set_xticks(shown, map(str, shown))
        axis.set_title(name)
        axis.grid(alpha=.3)
    figure.supxlabel('time steps T')
    axes[0][0].set_ylabel('threshold / largest activation')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_energy(bars: Mapping[str, Mapping[str, float]], path: str | Path,
                colors: Mapping[str, str] | None = None) -> None:
    """Draw the energy per image of several models as stacked bars.

    Args:
        bars: model -> what it spends energy on -> millijoule.
        path: image file to write.
        colors: of a model, for the last kind of what models spend energy on; all else is grey.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(10, 1.4 + .34 * len(bars)), layout='constrained')
    left = [0.] * len(bars)
    kinds = list(dict.fromkeys(kind for parts in bars.values() for kind, value in parts.items() if value))
    handles = []
    for number, kind in enumerate(kinds):
        own = colors is not None and kind == kinds[-1]
        widths = [parts.get(kind, 0.) for parts in bars.values()]
        shown = [colors.get(model, PALETTE[0]) for model in bars] if own and colors else GREYS[number % len(GREYS)]
        axis.barh(list(bars), widths, left=left, color=shown, height=.7, label=kind)
        handles.append(patches(colors.values() if own and colors else [GREYS[number % len(GREYS)]]))
        left = [start + width for start, width in zip(left, widths)]
    axis.invert_yaxis()
    axis.set_xlabel('energy per image, mJ')
    axis.grid(axis='x', alpha=.3)
    axis.set_axisbelow(True)
    figure.legend(handles, kinds, loc='outside lower center', ncols=3, handler_map=many_colors())
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_pictures(rows: Mapping[str, Mapping[str, np.ndarray]], path: str | Path, width: float = 2.6,
                  caption: str = '') -> None:
    """Draw pictures in a grid.

    Args:
        rows: title of a row -> title of a column -> RGB picture, (H, W, 3) uint8.
        path: image file to write.
        width: of a picture, in inches of 110 pixels.
        caption: text below them all.
    """
    plt = pyplot()
    columns = list(dict.fromkeys(column for pictures in rows.values() for column in pictures))
    ratio = sum(p.shape[0] / p.shape[1] for pictures in rows.values() for p in pictures.values())
    ratio /= sum(map(len, rows.values()))
    height = (width * ratio + .1) * len(rows) + (1. if caption else .3)
    figure, axes = plt.subplots(len(rows), len(columns), squeeze=False, layout='constrained',
                                figsize=(width * len(columns), height))
    figure.get_layout_engine().set(h_pad=.08)
    for axis, column in zip(axes[0], columns):
        axis.set_title(column, fontsize='medium' if width < 5 else 'xx-large')
    if caption:
        figure.supxlabel(caption, fontsize='x-large')
    for line, (row, pictures) in zip(axes, rows.items()):
        for axis, column in zip(line, columns):
            axis.set(xticks=[], yticks=[], frame_on=False)
            if column in pictures:
                axis.imshow(pictures[column])
        line[0].set_ylabel(row)
    figure.savefig(path, dpi=110)
    plt.close(figure)
