"""The figure of docs/index.md, drawn from the tables of a page; tools/figures.py calls this."""
import re
from pathlib import Path

from mmsnn.analysis.plots import MARKERS, colors_of, pyplot
from mmsnn.experiments.recompute import markdown_tables

ROOT = Path(__file__).resolve().parent.parent


def home_figure(path: Path, page: Path = ROOT / 'docs' / 'signed.md') -> dict[str, list[tuple[float, float]]]:
    """Draw accuracy against work, from the tables of a page; return the points of each pipeline.

    Large type and labels at the curves, no legend: a phone shows the figure at less than half its size.
    """
    plt = pyplot()
    accuracy, work = (next(rows for _, rows in markdown_tables(page.read_text()) if rows[0][0].startswith(head))
                      for head in ('accuracy/top1', 'synaptic operations per image'))
    points = {name.partition(':')[0]: list(zip(map(float, cost), map(float, scores)))
              for (name, *scores), (_, *cost) in zip(accuracy[1:], work[1:]) if ':max_spikes' not in name}
    ann, macs = (float(re.search(r': ([\d.]+)\)', rows[0][0])[1]) for rows in (accuracy, work))
    with plt.rc_context({'font.size': 17}):
        figure, axis = plt.subplots(figsize=(8, 6.4), layout='constrained')
        axis.axhline(ann, color='black', linestyle='--', linewidth=1.5)
        axis.text(14, ann + 1.2, f'the ANN: {ann:.1f} %')
        axis.axvline(macs, color='#6b7280', linestyle=':', linewidth=2)
        axis.text(macs * 1.04, 12, "the ANN's\nmultiply-accumulates", color='#6b7280')
        for (name, color), marker in zip(colors_of(points).items(), MARKERS):
            axis.plot(*zip(*points[name]), color=color, marker=marker, markersize=9, linewidth=3)
            x, y = points[name][-1]
            axis.annotate(name, (x, y), (9, -26 if y > ann - 3 else -5), textcoords='offset points', color=color,
                          fontweight='bold')
        axis.set_xscale('log', base=2)
        axis.set_xticks([16, 32, 64, 128], ['16', '32', '64', '128'])
        axis.set(xlim=(12.5, 260), ylim=(8, 98), xlabel='synaptic operations per image, millions', ylabel='top-1, %')
        axis.grid(alpha=.3)
        figure.savefig(path, dpi=100)
    plt.close(figure)
    return points
