"""Every comparison of the paper on your own model: methods x time steps x seeds, in one table and one figure.

    python tools/sweep.py CONFIG CKPT --time-steps 4 8 16 32 --pipelines none light advanced --seeds 5
    python tools/sweep.py CONFIG CKPT --time-steps 16 --pipelines light --num-images 32 64 128 256     [Table 6]
    python tools/sweep.py CONFIG CKPT --time-steps 16 32 --pipelines none --thresholds max-layer mmse --shift none bias
    python tools/sweep.py CONFIG CKPT --time-steps 4 --pipelines signed signed:max_spikes=1 signed:bias=False,rounds=2

CONFIG is that of a spiking detector or classifier with mmsnn.CalibrationHook, CKPT the checkpoint of its ANN. Each
row is what ``tools/test.py`` gives for the same settings; a seed chooses the calibration images. Rows go to
``rows.json`` in the work folder as they finish and are not run again after an interruption.
"""
import argparse
import csv
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmsnn.experiments.jobs import CORES
from mmsnn.experiments.methods import choices_table, parse_pipeline, readable
from mmsnn.experiments.runs import AXES, CEILING, complete, evaluate, jobs_of, shown_metric, stored_rows
from mmsnn.openmmlab.scripts import check_checkpoint


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
        score, its standard deviation, synaptic operations), and the ANN's score.
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
        labels[label(row, axes)] = label(dict(row, pipeline=named[row['pipeline']]), axes)
        found.setdefault(label(row, axes), {}).setdefault(row[column], []).append(row)

    def cell(group: list[dict], key: str, digits: int, unit: float) -> str:
        scores = [row[key] / unit for row in group if key in row]
        spread = f' ± {statistics.stdev(scores):.{digits}f}' if len(scores) > 1 else ''
        return f'{statistics.mean(scores):.{digits}f}{spread}' if scores else ''

    def table(key: str, digits: int, title: str, unit: float = 1.) -> str:
        names = [f'T = {c}' if column == 'time_steps' else f'{c} images' for c in columns]
        lines = [f'| {title} | ' + ' | '.join(names) + ' |', '|---|' + '---|' * len(columns)]
        lines += [f'| {method} | ' + ' | '.join(cell(cells.get(c, []), key, digits, unit) for c in columns) + ' |'
                  for method, cells in found.items()]
        return '\n'.join(lines)

    percent = metric.startswith('accuracy')
    fixed = f', T = {values["time_steps"][0]}' if column == 'num_images' else ''
    title = metric + fixed + ('' if ann is None else f' (ANN: {ann:.{2 if percent else 3}f})')
    macs = next((f' (MACs of the ANN: {row["ann_macs"] / 1e6:.1f})' for row in rows if 'ann_macs' in row), '')
    digits = 2 if percent else 3
    tables = [table(metric, digits, title)]
    if any(f'{metric} {CEILING}' in row for row in rows):
        tables.append(table(f'{metric} {CEILING}', digits, 'ceiling: activations quantised, without time'))
    tables += [table('synaptic_operations', 1, f'synaptic operations per image, millions{macs}', 1e6),
               table('spikes_per_neuron', 2, 'spikes per neuron'),
               table('calibration_seconds', 1, 'calibration, seconds')]
    if choices := choices_table(rows):
        tables.append(choices)
    curves = {labels[method]: [(c, statistics.mean(s := [row[metric] for row in group]),
                        statistics.stdev(s) if len(s) > 1 else 0.,
                        statistics.mean(row['synaptic_operations'] for row in group)) for c, group in cells.items()]
              for method, cells in found.items()} if column == 'time_steps' else {}
    return '\n\n'.join(tables), curves, ann


def main() -> None:
    from mmengine.config import Config, DictAction

    from mmsnn import PIPELINES
    from mmsnn.analysis.plots import plot_comparison
    from mmsnn.openmmlab.hooks import calibration_hook

    rules = [rule + granularity for rule in ('mmse', 'percentile', 'max', 'balanced') for granularity in ('', '-layer')]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the spiking model')
    parser.add_argument('checkpoint', help='checkpoint of the ANN')
    parser.add_argument('--time-steps', type=int, nargs='+', default=[8, 16, 32, 64])
    parser.add_argument('--pipelines', nargs='+', default=['none', 'light', 'advanced'],
                        metavar='NAME[:OPTION=VALUE,..]', help=f'of {", ".join(PIPELINES)}; options replace choices')
    parser.add_argument('--thresholds', nargs='+', default=[None], choices=rules,
                        help="rule, per channel or per layer (default: the pipeline's own)")
    parser.add_argument('--shift', nargs='+', default=[None], choices=['bias', 'potential', 'none'],
                        help="how neurons round; none floors (default: the pipeline's own)")
    parser.add_argument('--num-images', type=int, nargs='+', default=[None],
                        help="calibration images (default: the config's)")
    parser.add_argument('--seeds', type=int, default=1, help='how many seeds, from 0 on')
    parser.add_argument('--ceiling', action='store_true',
                        help='also test the ANN with quantised activations, without time: what rate coding can reach')
    parser.add_argument('--metric', help='the metric that the table shows')
    parser.add_argument('--workers', type=int, default=CORES, help='runs at the same time')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/sweep/<config name>')
    parser.add_argument('--restart', action='store_true', help='forget the rows of an earlier sweep')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        help='override settings of the config, such as custom_hooks.0.batch_size=4')
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)  # what it imports may add pipelines and threshold rules
    for pipeline in args.pipelines:
        try:
            parse_pipeline(pipeline)
        except ValueError as error:
            parser.error(f'--pipelines {pipeline}: {error}')

    cfg.merge_from_dict(args.cfg_options)
    try:
        calibration_hook(cfg)  # complains where there is none, or a wrong one
    except ValueError as error:
        parser.error(str(error))
    check_checkpoint(args.checkpoint)
    work_dir = args.work_dir or Path('work_dirs', 'sweep', Path(args.config).stem)
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / 'rows.json'
    made_with = dict(config=args.config, checkpoint=args.checkpoint, options=args.cfg_options)
    axes = args.pipelines, args.thresholds, args.shift, args.num_images, args.time_steps
    worker = args.config, args.checkpoint, args.cfg_options, str(work_dir), args.ceiling
    try:
        stored = stored_rows(path, made_with, args.restart)
    except ValueError as error:
        parser.error(f'{error}: choose another --work-dir, or --restart to forget it')
    table_rows = complete(path, stored, jobs_of(axes, args.seeds), evaluate, worker, args.workers, args.metric)
    metric = shown_metric(table_rows[0], args.metric)
    text, curves, score = summarise(table_rows, metric)
    (work_dir / 'table.md').write_text(text + '\n')
    with open(work_dir / 'rows.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table_rows for key in row)))
        writer.writeheader()
        writer.writerows(table_rows)
    written = [path, work_dir / 'rows.csv', work_dir / 'table.md']
    if curves:
        macs = next((row['ann_macs'] for row in table_rows if 'ann_macs' in row), None)
        plot_comparison(curves, score, macs, work_dir / 'figure.png', metric)
        written.append(work_dir / 'figure.png')
    print(f'\n{text}\n\nsaved {", ".join(map(str, written))}')


if __name__ == '__main__':
    main()
