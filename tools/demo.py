"""The main job: ANN against spiking detectors on real data, for every pipeline and several T [Table 4 of the paper].

    python tools/demo.py                    digits: needs nothing but this repository
    python tools/demo.py --data bccd        blood cells: needs data/bccd (see configs/_base_/bccd.py)

Each row runs as ``tools/test.py CONFIG CHECKPOINT`` does: mmdet's runner, CalibrationHook, CocoMetric. Rows that are in
``<work-dir>/table.json`` already are not run again (``--restart`` forgets them).
"""
import argparse
import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from mmsnn.experiments.jobs import run_jobs
from mmsnn.files import save_json
from mmsnn.machine import CORES

DETECTORS = {'RetinaNet': 'retinanet_r50-thin_fpn', 'Faster R-CNN': 'faster-rcnn_r50-thin_fpn'}
PIPELINES = ('none', 'light', 'advanced', 'signed')
PAPER_NAMES = {'none': 'Baseline', 'light': 'Baseline + LCP', 'advanced': 'Baseline + ACP',
               'signed': 'Signed bursts'}


def evaluate(data: str, detector: str, pipeline: str, time_steps: int | None, work_dir: str) -> dict:
    """Test one detector through mmengine's runner and return its row of the table."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    stem = DETECTORS[detector]
    spiking = '' if pipeline == 'ann' else f'_snn-{pipeline}'
    cfg = Config.fromfile(ROOT / 'configs' / data / f'{stem}{spiking}_{data}.py')
    cfg.load_from = str(ROOT / 'checkpoints' / f'{stem}_{data}.pth')
    cfg.work_dir = str(Path(work_dir, f'{stem}_{pipeline}_{time_steps}'))
    cfg.log_level = 'ERROR'
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    if time_steps is not None:
        cfg.model.backbone.time_steps = time_steps
        cfg.custom_hooks[0].progress = False
    started = time.time()
    logging.disable(logging.WARNING)  # what several runs print at once would bury the table
    with open(os.devnull, 'w') as quiet, contextlib.redirect_stdout(quiet):
        metrics = Runner.from_cfg(cfg).test()
    return dict(detector=detector, pipeline=pipeline, time_steps=time_steps, bbox_mAP=metrics['coco/bbox_mAP'],
                seconds=round(time.time() - started, 1))


def table(rows: list[dict], time_steps: list[int]) -> str:
    """Lay out the rows as Table 4 of the paper, with the share of the ANN's mAP that is kept."""
    found = {(row['detector'], row['pipeline'], row['time_steps']): row['bbox_mAP'] for row in rows}
    lines = ['| Method | ' + ' | '.join(f'T = {steps}' for steps in time_steps) + ' |',
             '|---|' + '---|' * len(time_steps)]
    for detector in DETECTORS:
        ann = found.get((detector, 'ann', None))
        if ann is None:
            continue
        lines.append(f'| **{detector}** (ANN mAP: {ann:.3f}) |' + ' |' * len(time_steps))
        for pipeline in PIPELINES:
            scores = [found.get((detector, pipeline, steps)) for steps in time_steps]
            cells = ['' if s is None else f'{s:.3f} ({s / max(ann, 1e-9):.1%})' for s in scores]
            if any(cells):
                lines.append(f'| {PAPER_NAMES[pipeline]} (`{pipeline}`) | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def prepare(data: str) -> None:
    """Make or check the data set."""
    if data == 'digits':
        from make_digits import make_digits
        make_digits(ROOT / 'data' / 'digits')
    elif not (ROOT / 'data' / data / 'test.json').is_file():
        sys.exit(f'{ROOT / "data" / data} does not hold the data set: configs/_base_/{data}.py says what belongs there')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', choices=['digits', 'bccd'], default='digits')
    parser.add_argument('--time-steps', type=int, nargs='+', default=[8, 16, 32, 64])
    parser.add_argument('--pipelines', choices=PIPELINES, nargs='+', default=PIPELINES)
    parser.add_argument('--detectors', choices=list(DETECTORS), nargs='+', default=list(DETECTORS))
    parser.add_argument('--workers', type=int, default=CORES, help='rows computed at the same time')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo (digits), work_dirs/demo_bccd')
    parser.add_argument('--restart', action='store_true', help='forget the rows of an earlier run')
    args = parser.parse_args()

    os.chdir(ROOT)  # the configs name their data relative to the repository
    work_dir = args.work_dir or Path('work_dirs', 'demo' if args.data == 'digits' else f'demo_{args.data}')
    work_dir.mkdir(parents=True, exist_ok=True)
    prepare(args.data)
    path = work_dir / 'table.json'
    rows = [] if args.restart or not path.is_file() else json.loads(path.read_text())
    done = {(row['detector'], row['pipeline'], row['time_steps']) for row in rows}
    jobs = [(detector, 'ann', None) for detector in args.detectors]
    jobs += [(detector, pipeline, steps) for steps in args.time_steps for pipeline in args.pipelines
             for detector in args.detectors]
    todo = [job for job in jobs if job not in done]
    workers = max(1, min(args.workers, len(todo)))
    print(f'{len(todo)} of {len(jobs)} rows to compute, {workers} at a time; calibration images and weight iterations '
          f'are those of configs/{args.data} (the paper uses more: 128 images, 5,000 iterations)', flush=True)
    started = time.time()
    results = run_jobs(evaluate, [(args.data, *job, str(work_dir)) for job in todo], workers)
    for count, row in enumerate(results, 1):
        rows.append(row)
        save_json(rows, path)
        steps = '' if row['time_steps'] is None else f'T = {row["time_steps"]}'
        print(f'[{count:2}/{len(todo)}] {row["detector"]:<12} {row["pipeline"]:<8} {steps:<6}  mAP '
              f'{row["bbox_mAP"]:.3f}   ({row["seconds"]:.0f} s; {time.time() - started:.0f} s so far)', flush=True)

    from mmsnn.analysis.plots import plot_against_time_steps
    time_steps = sorted({row['time_steps'] for row in rows} - {None})
    curves = {detector: {pipeline: points for pipeline in PIPELINES if (points := [
        (row['time_steps'], row['bbox_mAP']) for row in rows
        if row['detector'] == detector and row['pipeline'] == pipeline])} for detector in DETECTORS}
    references = {row['detector']: row['bbox_mAP'] for row in rows if row['pipeline'] == 'ann'}
    plot_against_time_steps({d: c for d, c in curves.items() if c}, references, work_dir / 'map.png', 'COCO bbox mAP')
    text = table(rows, time_steps)
    (work_dir / 'table.md').write_text(text + '\n')
    print(f'\n{text}\n\nsaved {path}, {work_dir / "table.md"} and {work_dir / "map.png"}')


if __name__ == '__main__':
    main()
