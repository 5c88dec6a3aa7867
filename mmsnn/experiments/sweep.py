"""Many methods side by side on one model: one table, one figure."""
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from ..machine import CORES
from .methods import choices_table, parse_pipeline, readable
from .runs import AXES, CEILING, complete, evaluate, fingerprint, jobs_of, shown_metric, stored_rows

Axes = tuple[Sequence, Sequence, Sequence, Sequence, Sequence]


def run_sweep(config: str, checkpoint: str, axes: Axes, *, seeds: int = 1, options: dict | None = None,
              work_dir: Path | None = None, ceiling: bool = False, metric: str | None = None, workers: int = CORES,
              restart: bool = False) -> tuple[str, list[Path]]:
    """Run every combination of some settings, and write ``rows.json``, ``rows.csv``, ``table.md`` and ``figure.png``.

    Each row is what testing the config with the same settings gives. Rows are stored as they finish, and are not run
    again after an interruption.

    Args:
        config: of a spiking detector or classifier with CalibrationHook.
        checkpoint: of its ANN.
        axes: pipelines, threshold rules, shifts, numbers of images and time steps; None for the config's own.
        seeds: how many, from 0 on; a seed chooses the calibration images.
        options: settings of the config to override.
        work_dir: folder to write to; by default ``work_dirs/sweep/<config name>``.
        ceiling: also test the ANN with quantised activations, without time.
        metric: the one that the table shows; by default accuracy or mAP.
        workers: runs at the same time.
        restart: forget the rows of an earlier sweep.

    Returns:
        The tables as text, and the files that were written.

    Raises:
        ValueError: no such pipeline or option, no CalibrationHook, no such metric, or the folder holds another sweep.
        CheckpointError: the checkpoint is calibrated already.
    """
    from ..openmmlab.checkpoints import check_checkpoint
    from ..openmmlab.hooks import calibration_hook
    from ..openmmlab.preflight import check_of_ann
    from ..openmmlab.scripts import read_config
    options = options or {}
    cfg = read_config(config, options)  # what it imports may add pipelines and threshold rules
    check_pipelines(axes[0])
    check_axes(*axes[:3])
    check_testable(cfg)
    calibration_hook(cfg)  # complains where there is none, or a wrong one
    check_checkpoint(checkpoint)
    check_of_ann(checkpoint)
    work_dir = work_dir or Path('work_dirs', 'sweep', Path(config).stem)
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / 'rows.json'
    try:
        stored = stored_rows(path, dict(config=config, checkpoint=checkpoint, options=options,
                                        fingerprint=fingerprint(cfg, checkpoint)), restart)
    except ValueError as error:
        raise ValueError(f'{error}: choose another --work-dir, or --restart to forget it') from error
    worker = config, checkpoint, options, str(work_dir), ceiling
    rows = complete(path, stored, jobs_of(axes, seeds), evaluate, worker, workers, metric)
    metric = shown_metric(rows[0], metric)
    text, curves, score = summarise(rows, metric)
    written = [path, work_dir / 'rows.csv', work_dir / 'table.md']
    (work_dir / 'table.md').write_text(text + '\n', encoding='utf-8')
    with open(work_dir / 'rows.csv', 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    if curves:
        from ..analysis.plots import plot_comparison
        assert score is not None  # the first of the rows is the ANN's
        macs = next((row['ann_macs'] for row in rows if 'ann_macs' in row), None)
        plot_comparison(curves, score, macs, work_dir / 'figure.png', metric)
        written.append(work_dir / 'figure.png')
    return text, written


def check_testable(cfg) -> None:
    """Refuse a config that cannot be tested.

    Raises:
        ValueError: naming what it lacks, or must not have.
    """
    from ..openmmlab.checks import check_averages
    missing = [name for name in ('model', 'test_dataloader', 'test_evaluator', 'test_cfg') if cfg.get(name) is None]
    if missing:
        raise ValueError(f'the config has no {", ".join(missing)}: it must be one that mmsnn test can test')
    check_averages(cfg)


def check_pipelines(pipelines: Sequence[str]) -> None:
    """Refuse what is no pipeline, before anything runs.

    Raises:
        ValueError: naming it.
    """
    for pipeline in pipelines:
        try:
            parse_pipeline(pipeline)
        except (TypeError, ValueError) as error:
            raise ValueError(f'--pipelines {pipeline}: {error}') from error


def check_axes(pipelines: Sequence[str], thresholds: Sequence[str | None], shifts: Sequence[str | None]) -> None:
    """Refuse what is said twice: beside a pipeline's name, and for all pipelines.

    Raises:
        ValueError: naming both.
    """
    for axis, values, names in (('--thresholds', thresholds, ('threshold', 'channel_wise')),
                                ('--shift', shifts, ('shift',))):
        for pipeline in pipelines:
            twice = [name for name in names if name in parse_pipeline(pipeline)[1]]
            if twice and any(values):
                raise ValueError(f'--pipelines {pipeline} sets {twice[0]}, and so does {axis}: give one of them')


def label(job: dict, axes: list[str]) -> str:
    """Name of a method: its settings on the axes that are not constant over the whole sweep."""
    def setting(axis: str) -> str:
        value = str(job[axis])
        return {'num_images': f'{value} images', 'shift': f'shift {value}'}.get(axis, value)

    return ', '.join(setting(axis) for axis in axes if axis == 'pipeline' or job[axis] is not None)


def summarise(rows: list[dict], metric: str) -> tuple[str, dict, float | None]:
    """Lay the rows out as a table of mean and standard deviation over seeds.

    Returns:
        Tables of score, cost and calibration time as markdown, the curves to plot (for each method: time steps, mean
        score, its standard deviation, synaptic operations by events and by size), and the ANN's score.
    """
    ann = next((row[metric] for row in rows if row['pipeline'] == 'ann'), None)
    rows = [row for row in rows if row['pipeline'] != 'ann']
    values = {axis: list(dict.fromkeys(row[axis] for row in rows)) for axis in AXES}
    column = 'num_images' if len(values['time_steps']) == 1 and len(values['num_images']) > 1 else 'time_steps'
    axes = [axis for axis in AXES if axis not in (column, 'seed') and (axis == 'pipeline' or len(values[axis]) > 1)]
    columns = sorted(values[column], key=lambda value: value or 0)
    found: dict[str, dict] = {}
    named = readable(row['pipeline'] for row in rows)
    labels: dict[str, str] = {}  # of the table: the figure's
    for row in rows:
        labels[label(row, axes)] = (label(dict(row, pipeline=named[row['pipeline']]), axes)
                                    + f' ({row["levels"]} levels a step)')
        found.setdefault(label(row, axes), {}).setdefault(row[column], []).append(row)

    def table(key: str, digits: int, title: str, unit: float = 1.) -> str:
        names = [f'T = {c}' if column == 'time_steps' else f'{c} images' for c in columns]
        lines = [f'| {title} | levels a step | ' + ' | '.join(names) + ' |', '|---|---|' + '---|' * len(columns)]
        lines += [f'| {method} | {levels(cells)} | '
                  + ' | '.join(cell(cells.get(c, []), key, digits, unit) for c in columns) + ' |'
                  for method, cells in found.items()]
        return '\n'.join(lines)

    digits = 2 if metric.startswith('accuracy') else 3
    fixed = f', T = {values["time_steps"][0]}' if column == 'num_images' else ''
    title = metric + fixed + ('' if ann is None else f' (ANN: {ann:.{digits}f})')
    macs = next((f' (MACs of the ANN: {row["ann_macs"] / 1e6:.1f})' for row in rows if 'ann_macs' in row), '')
    tables = [table(metric, digits, title)]
    if any(f'{metric} {CEILING}' in row for row in rows):
        tables.append(table(f'{metric} {CEILING}', digits, 'ceiling: activations quantised, without time'))
    tables += [table('synaptic_operations', 1, f'synaptic operations per image by size, millions{macs}', 1e6),
               table('event_operations', 1, 'the same by events: a spike of any size is one', 1e6),
               table('spikes_per_neuron', 2, 'spikes per neuron'),
               table('calibration_seconds', 1, 'calibration, seconds')]
    if choices := choices_table(rows):
        tables.append(choices)
    curves = {labels[method]: [(time_steps, *point(group, metric)) for time_steps, group in cells.items()]
              for method, cells in found.items()} if column == 'time_steps' else {}
    return '\n\n'.join(tables), curves, ann


def cell(group: list[dict], key: str, digits: int, unit: float) -> str:
    """Mean and standard deviation of a number in some rows, as text; nothing where no row has it."""
    scores = [row[key] / unit for row in group if key in row]
    spread = f' ± {statistics.stdev(scores):.{digits}f}' if len(scores) > 1 else ''
    return f'{statistics.mean(scores):.{digits}f}{spread}' if scores else ''


def levels(cells: dict[int, list[dict]]) -> str:
    """The numbers of levels a step in a line of a table."""
    return ', '.join(map(str, sorted({row['levels'] for group in cells.values() for row in group})))


def point(group: list[dict], metric: str) -> tuple[float, ...]:
    """Mean score, its standard deviation, and mean operations by events and by size of some rows."""
    scores = [row[metric] for row in group]
    return (statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.,
            *(statistics.mean(row[key] for row in group) for key in ('event_operations', 'synaptic_operations')))
