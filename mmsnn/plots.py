"""Figures. Matplotlib is imported where it is needed: nothing else depends on it."""
from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_against_time_steps(curves: Mapping[str, Mapping[str, Sequence[tuple[float, ...]]]],
                            references: Mapping[str, float], path: str | Path, ylabel: str) -> None:
    """Draw a score against the number of time steps: one panel per model, one line per method.

    Args:
        curves: model -> method -> (time steps, score) pairs, or (time steps, score, standard deviation).
        references: model -> score of its ANN, drawn as a dashed line.
        path: image file to write.
        ylabel: what the score is.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

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


def plot_comparison(curves: Mapping[str, Sequence[tuple[float, float, float, float]]], reference: float,
                    macs: float | None, path: str | Path, ylabel: str) -> None:
    """Draw the scores of several methods against the number of time steps, and against what they cost.

    Args:
        curves: method -> (time steps, score, standard deviation, synaptic operations per image).
        reference: score of the ANN, drawn as a dashed line.
        macs: multiply-accumulate operations of the ANN per image, drawn as a vertical line.
        path: image file to write.
        ylabel: what the score is.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, (by_steps, by_cost) = plt.subplots(1, 2, figsize=(13, 4.2), sharey=True, layout='constrained')
    for axis in (by_steps, by_cost):
        axis.axhline(reference, color='black', linestyle='--', linewidth=1, label='ANN' if axis is by_steps else None)
        axis.set_xscale('log', base=2)
        axis.grid(alpha=.3)
    for method, points in curves.items():
        steps, scores, deviations, operations = zip(*sorted(points))
        for axis, positions, label in ((by_steps, steps, method), (by_cost, [x / 1e6 for x in operations], None)):
            axis.errorbar(positions, scores, deviations, marker='o', capsize=3, label=label)
    ticks = sorted({point[0] for points in curves.values() for point in points})
    by_steps.set_xticks(ticks, map(str, ticks))
    by_steps.set(xlabel='time steps T', ylabel=ylabel)
    by_cost.xaxis.set_major_formatter('{x:g}')
    by_cost.set(xlabel='synaptic operations per image, millions')
    if macs is not None:
        by_cost.axvline(macs / 1e6, color='grey', linestyle=':', label='MACs of the ANN')
    figure.legend(loc='outside right upper', fontsize='small')
    figure.savefig(path, dpi=120)
    plt.close(figure)
