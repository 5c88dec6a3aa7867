"""Figures. Matplotlib is imported where it is needed: nothing else depends on it."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def pyplot():
    """matplotlib.pyplot, drawing to files."""
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
    figure, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 3.8), squeeze=False, sharey=True)
    for axis, (model, methods) in zip(axes[0], curves.items()):
        if model in references:
            axis.axhline(references[model], color='black', linestyle='--', linewidth=1, label='ANN')
        for method, points in methods.items():
            steps, scores, *deviations = zip(*sorted(points))
            axis.errorbar(steps, scores, *deviations, marker='o', capsize=3, label=method)
        ticks = sorted({point[0] for points in methods.values() for point in points})
        axis.set_xscale('log', base=2)
        axis.set_xticks(ticks, map(str, ticks))
        axis.set(title=model, xlabel='time steps T')
        axis.grid(alpha=.3)
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend()
    figure.tight_layout()
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
    figure, (by_steps, *by_cost) = plt.subplots(1, 3, figsize=(17, 4.2), sharey=True, layout='constrained')
    for axis in (by_steps, *by_cost):
        axis.axhline(reference, color=plt.rcParams['text.color'], linestyle='--', linewidth=1,
                     label='ANN' if axis is by_steps else None)
        axis.set_xscale('log', base=2)
        axis.grid(alpha=.3)
    for method, points in curves.items():
        steps, scores, deviations, *costs = zip(*sorted(points))
        by_steps.errorbar(steps, scores, deviations, marker='o', capsize=3, label=method)
        for axis, operations in zip(by_cost, costs):
            axis.errorbar([x / 1e6 for x in operations], scores, deviations, marker='o', capsize=3)
    ticks = sorted({point[0] for points in curves.values() for point in points})
    by_steps.set_xticks(ticks, map(str, ticks))
    by_steps.set(xlabel='time steps T', ylabel=ylabel)
    for axis, what in zip(by_cost, ('a spike of any size is one', 'a spike of size k is k')):
        axis.xaxis.set_major_formatter('{x:g}')
        axis.set(xlabel=f'synaptic operations per image, millions: {what}')
        if macs is not None:
            label = 'MACs of the ANN' if axis is by_cost[0] else None
            axis.axvline(macs / 1e6, color='grey', linestyle=':', label=label)
    figure.legend(loc='outside right upper', fontsize='small')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_errors(panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float | None]]]], path: str | Path) -> None:
    """Draw the relative errors of the channels of every layer as boxes [Figs. 2 and 5], one panel per method.

    Box from the 25 % to the 75 % quantile with a line at the median, whiskers at 5 % and 95 %, mean as a triangle.

    Args:
        panels: method -> name of a state (before and after calibration) -> for each layer the statistics that
            :func:`mmsnn.analysis.errors.box` returns.
        path: image file to write.
    """
    plt = pyplot()
    colors = {state: f'C{number}' for number, state in enumerate(
        dict.fromkeys(state for states in panels.values() for state in states))}
    layers = max(len(boxes) for states in panels.values() for boxes in states.values())
    figure, axes = plt.subplots(len(panels), 1, figsize=(11, 1 + 2.3 * len(panels)), squeeze=False, sharex=True,
                                sharey=True, layout='constrained')
    for axis, (method, states) in zip(axes[:, 0], panels.items()):
        width = .8 / len(states)
        for number, (state, boxes) in enumerate(states.items()):
            drawn = [(index, values) for index, values in enumerate(boxes, 1) if values['count']]
            axis.bxp([dict(med=v['median'], q1=v['q25'], q3=v['q75'], whislo=v['q05'], whishi=v['q95'], mean=v['mean'])
                      for _, v in drawn], [index + (number + .5) * width - .4 for index, _ in drawn],
                     widths=.8 * width, showfliers=False, showmeans=True, patch_artist=True, manage_ticks=False,
                     boxprops=dict(facecolor=colors[state], edgecolor=colors[state], alpha=.75),
                     whiskerprops=dict(color=colors[state]), capprops=dict(color=colors[state]),
                     medianprops=dict(color=plt.rcParams['text.color'], linewidth=1),
                     meanprops=dict(marker='^', markersize=4, markeredgecolor='none', markerfacecolor='C2'))
        axis.set_yscale('log')
        axis.set_title(method, loc='left', fontsize='medium')
        axis.grid(axis='y', alpha=.3)
    axes[-1][0].set(xlabel='layer of neurons, from the image on', xlim=(.3, layers + .7))
    axes[-1][0].xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    figure.supylabel('relative error of a channel')
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=color, alpha=.75, label=state) for state, color in colors.items()]
    handles.append(plt.Line2D([], [], linestyle='', marker='^', markersize=5, color='C2', label='mean'))
    figure.legend(handles=handles, loc='outside upper right', ncols=len(handles), fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_layers(panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, ylabel: str) -> None:
    """Draw one value per layer of neurons, such as firing rates [Fig. 6]: a panel per method, a line per curve."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(max(9.5, 4.2 * len(panels)), 3.6), squeeze=False, sharey=True,
                                layout='constrained')
    for axis, (method, curves) in zip(axes[0], panels.items()):
        for label, values in curves.items():
            axis.plot(range(1, len(values) + 1), values, marker='.', linewidth=1, label=label)
        axis.set_title(method, loc='left', fontsize='medium')
        axis.set_xlabel('layer of neurons')
        axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axis.grid(alpha=.3)
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_thresholds(time_steps: Sequence[int], shares: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Draw the threshold of each layer, as a share of its largest activation, against T [Fig. 4]; colour is depth."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(9.5, 4), layout='constrained')
    depth = plt.Normalize(1, max(len(shares), 2))
    for number, values in enumerate(shares.values(), 1):
        axis.plot(time_steps, values, color=plt.cm.viridis(depth(number)), marker='.', linewidth=1)
    axis.set_xscale('log', base=2)
    axis.set_xticks(time_steps, map(str, time_steps))
    axis.set(xlabel='time steps T', ylabel='threshold / largest activation')
    axis.grid(alpha=.3)
    figure.colorbar(plt.cm.ScalarMappable(depth, 'viridis'), ax=axis, label='layer of neurons')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_energy(bars: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Draw the energy per image of several models as stacked bars.

    Args:
        bars: model -> what it spends energy on -> millijoule.
        path: image file to write.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(9.5, 1.2 + .32 * len(bars)), layout='constrained')
    left = [0.] * len(bars)
    for kind in dict.fromkeys(kind for parts in bars.values() for kind, value in parts.items() if value):
        widths = [parts.get(kind, 0.) for parts in bars.values()]
        axis.barh(list(bars), widths, left=left, label=kind, height=.7)
        left = [start + width for start, width in zip(left, widths)]
    axis.invert_yaxis()
    axis.set_xlabel('energy per image, mJ')
    axis.grid(axis='x', alpha=.3)
    axis.set_axisbelow(True)
    figure.legend(loc='outside upper right', ncols=3, fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_pictures(rows: Mapping[str, Mapping[str, np.ndarray]], path: str | Path, width: float = 2.6) -> None:
    """Draw pictures in a grid.

    Args:
        rows: title of a row -> title of a column -> RGB picture, (H, W, 3) uint8.
        path: image file to write.
        width: of a picture, in inches of 110 pixels.
    """
    plt = pyplot()
    columns = list(dict.fromkeys(column for pictures in rows.values() for column in pictures))
    ratio = sum(p.shape[0] / p.shape[1] for pictures in rows.values() for p in pictures.values())
    ratio /= sum(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), len(columns), squeeze=False, layout='constrained',
                                figsize=(width * len(columns), (width * ratio + .1) * len(rows) + .3))
    for axis, column in zip(axes[0], columns):
        axis.set_title(column, fontsize='medium')
    for line, (row, pictures) in zip(axes, rows.items()):
        for axis, column in zip(line, columns):
            axis.set(xticks=[], yticks=[], frame_on=False)
            if column in pictures:
                axis.imshow(pictures[column])
        line[0].set_ylabel(row)
    figure.savefig(path, dpi=110)
    plt.close(figure)
