"""The detectors of this repository, ANN against spiking network: a table [Table 4], a first picture, a page."""
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..files import save_json
from .jobs import run_jobs
from .methods import split_pipeline

DETECTORS = {'RetinaNet': 'retinanet_r50-thin_fpn', 'Faster R-CNN': 'faster-rcnn_r50-thin_fpn',
             'FCOS': 'fcos_r50-thin_fpn_gn-head', 'YOLOX': 'yolox_thin'}
TABLE_4 = 'RetinaNet', 'Faster R-CNN'  # the others spike as a whole only
WEIGHTS = 'signed:weights=True,iterations=200,learning_rate=0.003'
METHODS = {'none': 'Baseline', 'light': 'Baseline + LCP', 'advanced': 'Baseline + ACP', 'signed': 'Signed bursts',
           WEIGHTS: 'Signed bursts, and weights'}
WHOLE = 'whole-differential'  # backbone, neck and heads
# What a row tells of the cost of an image: results of SpikeMetric.
COSTS = ('event_operations', 'synaptic_operations', 'event_energy_ratio', 'energy_ratio', 'ann_macs', 'other_macs',
         'graded_operations')
SHARES = '_ann_share', '_event_share'  # of each part in the ANN's energy
TIME_STEPS = 8, 16, 32, 64
SCENE = 3  # test image of the first picture
# The tour's share of Table 4, the best value for the time first, and how much of its time the table may take.
TOUR_PIPELINES = 'signed', 'none', 'light', 'advanced'
TOUR_TIME_STEPS = 4, 8
TABLE_SHARE = .6
PAGE_PIPELINES = 'none', 'signed'

Job = tuple[str, str, int | None]  # detector, pipeline or 'ann', time steps


@dataclass(frozen=True)
class Demo:
    """Where things are.

    Args:
        root: the repository, which must be the working directory: configs name their data relative to it.
        data: the data set's name among the configs.
        work_dir: gets ``table.json``, ``table.md``, ``map.png``, and from the tour ``picture.png`` and ``page/``.
    """

    root: Path
    data: str
    work_dir: Path

    def config(self, detector: str, pipeline: str) -> Path:
        spiking = '' if pipeline == 'ann' else f'_snn-{split_pipeline(pipeline)[0]}'
        return self.root / 'configs' / self.data / f'{DETECTORS[detector]}{spiking}_{self.data}.py'

    def checkpoint(self, detector: str) -> Path:
        return self.root / 'checkpoints' / f'{DETECTORS[detector]}_{self.data}.pth'

    def stored(self) -> list[dict]:
        """The rows that are finished.

        Raises:
            SystemExit: their file is damaged.
        """
        path = self.work_dir / 'table.json'
        try:
            rows = json.loads(path.read_text()) if path.is_file() else []
        except ValueError as error:
            sys.exit(f'{path} is damaged ({error}): --restart forgets it')
        return [row for row in rows if row['pipeline'] == 'ann' or 'levels' in row]  # earlier versions had no costs


def jobs_of(detectors, pipelines, time_steps) -> list[Job]:
    """The ANNs, then every pipeline of every detector, few time steps first."""
    return [(detector, 'ann', None) for detector in detectors] + [
        (detector, pipeline, steps) for steps in time_steps for pipeline in pipelines for detector in detectors]


def key_of(row: dict) -> Job:
    return row['detector'], row['pipeline'], row['time_steps']


def evaluate(demo: Demo, job: Job, picture: Path | None = None, deadline: float | None = None) -> dict | None:
    """Test one detector as ``tools/test.py`` does: mmengine's runner, CalibrationHook, CocoMetric.

    Args:
        demo: where things are.
        job: what to test.
        picture: gets what ANN and SNN detect on one test image.
        deadline: time after which it is too late to start.

    Returns:
        The row of the table, or None if it was too late: the score, and of a spiking network what :data:`COSTS` names
        (per image, neck and head included in the energies), each part's :data:`SHARES`, and ``levels``, the values that
        a neuron can emit in one step.
    """
    from mmengine.config import Config
    from mmengine.runner import Runner

    from ..openmmlab.wrapper import spiking_parts
    from .runs import test

    if deadline is not None and time.time() > deadline:
        return None
    detector, pipeline, time_steps = job
    cfg = Config.fromfile(demo.config(detector, pipeline))
    cfg.load_from = str(demo.checkpoint(detector))
    _, options = split_pipeline(pipeline)
    cfg.work_dir = str(demo.work_dir / re.sub(r'\W+', '_', f'{DETECTORS[detector]}_{pipeline}_{time_steps}'))
    cfg.log_level = 'ERROR'
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    if time_steps is not None:
        (cfg.model if 'time_steps' in cfg.model else cfg.model.backbone).time_steps = time_steps
        cfg.custom_hooks[0].update(options, progress=False)
        cfg.test_evaluator = [cfg.test_evaluator, dict(type='mmsnn.SpikeMetric')]
    started = time.time()
    print(f'        {describe(job)}: started', flush=True)
    logging.disable(logging.WARNING)  # what several runs print at once would bury the table
    try:
        with open(os.devnull, 'w') as quiet, contextlib.redirect_stdout(quiet):
            runner = Runner.from_cfg(cfg)
            metrics = test(runner)
            row = dict(detector=detector, pipeline=pipeline, time_steps=time_steps,
                       bbox_mAP=metrics['coco/bbox_mAP'], seconds=round(time.time() - started, 1))
            if time_steps is not None:
                neurons = [neuron for part in spiking_parts(runner.model).values()
                           for neuron in part.snn.neurons.values()]
                row |= {key: metrics[f'spike/{key}'] for key in COSTS}
                row['shares'] = {key.removeprefix('spike/'): value for key, value in metrics.items()
                                 if key.endswith(SHARES)}
                row['levels'] = max(neuron.rule.values for neuron in neurons)
            if picture is not None:
                from .comparison import draw_comparison
                dataset = runner.test_dataloader.dataset
                image = dataset.get_data_info(min(SCENE, len(dataset) - 1))['img_path']
                row['detections'] = draw_comparison(runner.model, cfg, dataset.metainfo['classes'], image, picture)
    finally:
        logging.disable(logging.NOTSET)
    return row


def describe(job: Job) -> str:
    detector, pipeline, steps = job
    return f'{detector}, ANN' if pipeline == 'ann' else f'{detector}, {pipeline}, T = {steps}'


def complete(demo: Demo, jobs: list[Job], workers: int, pictures: dict[Job, Path] | None = None,
             deadline: float | None = None) -> tuple[list[dict], int]:
    """Compute the rows that are not stored yet, and store each as it is finished.

    Args:
        demo: where things are.
        jobs: what the table is to have.
        workers: rows at the same time.
        pictures: what rows are to draw; a row whose picture is missing is computed again.
        deadline: no row is started after this time.

    Returns:
        All stored rows, and how many of the jobs are still missing.
    """
    pictures, rows = pictures or {}, {key_of(row): row for row in demo.stored()}
    todo = [job for job in jobs if job not in rows or (job in pictures and not pictures[job].is_file())]
    workers = max(1, min(workers, len(todo)))
    print(f'{len(todo)} of {len(jobs)} rows to compute, {workers} at a time; calibration images and weight iterations '
          f'are those of configs/{demo.data} (the paper uses more: 128 images, 5,000 iterations)', flush=True)
    started, late = time.time(), 0
    arguments = [(demo, job, pictures.get(job), deadline) for job in todo]
    for count, row in enumerate(run_jobs(evaluate, arguments, workers), 1):
        if row is None:
            late += 1
            continue
        # Another run may have stored rows in the same folder meanwhile.
        rows = {key_of(other): other for other in demo.stored()} | rows | {key_of(row): row}
        save_json(list(rows.values()), demo.work_dir / 'table.json')
        print(f'[{count:2}/{len(todo)}] {describe(key_of(row)):<34} mAP {row["bbox_mAP"]:.3f}   '
              f'({row["seconds"]:.0f} s; {time.time() - started:.0f} s so far)', flush=True)
        if key_of(row) in pictures:
            found = ', '.join(f'{title}: {number}' for title, number in row['detections'].items())
            print(f'        picture: {pictures[key_of(row)]} (detections: {found})', flush=True)
    return list(rows.values()), late


def table(rows: list[dict]) -> str:
    """Lay out rows as Table 4 of the paper, a line for each, with what it costs.

    Operations are additions per image, in millions, of what spikes: a spike of k times the threshold as one (by events)
    or as k (by size); the ANN's are multiply-accumulates of the complete detector. Energies are those of the complete
    detector, in units of the ANN's.
    """
    found = {key_of(row): row for row in rows}
    methods = list(dict.fromkeys([*METHODS, *(pipeline for _, pipeline, steps in found if steps is not None)]))
    lines = ['| Detector | Method | T | mAP | of the ANN\'s | operations by events, M | by size, M | '
             'energy by events | by size | levels a step | binary spikes |', '|---' * 11 + '|']
    for detector in DETECTORS:
        ann = found.get((detector, 'ann', None))
        own = sorted((row for row in rows if row['detector'] == detector and row['pipeline'] != 'ann'),
                     key=lambda row: (methods.index(row['pipeline']), row['time_steps']))
        if ann is None:
            continue
        macs = f'{(own[0]["ann_macs"] + own[0]["other_macs"]) / 1e6:.0f}' if own else '–'
        lines.append(f'| **{detector}** | ANN | – | {ann["bbox_mAP"]:.3f} | 100% | {macs} | {macs} | 1 | 1 | – | – |')
        for row in own:
            named = METHODS.get(row['pipeline'])
            name = f'{named} (`{row["pipeline"].split(",")[0]}`)' if named else f'`{row["pipeline"]}`'
            operations = ' | '.join(f'{row[key] / 1e6:.0f}' for key in COSTS[:2])
            energies = ' | '.join(f'{row[key]:.2f}' for key in COSTS[2:4])
            share = row['bbox_mAP'] / max(ann['bbox_mAP'], 1e-9)
            lines.append(f'| | {name} | {row["time_steps"]} | {row["bbox_mAP"]:.3f} | {share:.1%} | '
                         f'{operations} | {energies} | {row["levels"]} | {"yes" if row["levels"] == 2 else "no"} |')
    return '\n'.join(lines)


def write_table(demo: Demo, rows: list[dict]) -> str:
    """Write ``table.md`` and the figure ``map.png``; return the table."""
    from ..analysis.plots import plot_against_time_steps
    shown = list(dict.fromkeys([*METHODS, *(row['pipeline'] for row in rows if row['pipeline'] != 'ann')]))
    curves = {detector: {METHODS.get(pipeline, pipeline): points for pipeline in shown if (points := [
        (row['time_steps'], row['bbox_mAP']) for row in rows
        if row['detector'] == detector and row['pipeline'] == pipeline])} for detector in DETECTORS}
    curves = {detector: methods for detector, methods in curves.items() if methods}
    references = {row['detector']: row['bbox_mAP'] for row in rows if row['pipeline'] == 'ann'}
    if curves:
        plot_against_time_steps(curves, references, demo.work_dir / 'map.png', 'COCO bbox mAP')
    text = table(rows)
    (demo.work_dir / 'table.md').write_text(text + '\n', encoding='utf-8')
    return text


def make_page(demo: Demo, detector: str, time_steps: tuple[int, ...], images: int) -> Path:
    """Let ``tools/report.py`` write a page about a detector, with predictions on some test images.

    Raises:
        RuntimeError: it fails.
    """
    out = demo.work_dir / 'page'
    out.mkdir(parents=True, exist_ok=True)
    # Relative paths where possible: the page shows them.
    config, checkpoint = (os.path.relpath(path) for path in (demo.config(detector, 'light'), demo.checkpoint(detector)))
    command = [sys.executable, str(demo.root / 'tools' / 'report.py'), config, checkpoint,
               '--pipelines', *PAGE_PIPELINES, '--time-steps', *map(str, time_steps),
               '--test-images', str(images), '--out', str(out)]
    # Its bars are for terminals; elsewhere the lines that it prints for every run have to do.
    log = out / 'errors.log'
    with contextlib.nullcontext() if sys.stderr.isatty() else open(log, 'w') as errors:
        status = subprocess.run(command, stderr=errors).returncode
    if status:
        lines = log.read_text().splitlines()[-5:] if errors else []
        raise RuntimeError('\n'.join([f'the page was not made: {" ".join(command)} failed', *lines]))
    return out / 'index.html'


def tour(demo: Demo, workers: int, minutes: float = 10., detectors=TABLE_4, pipelines=TOUR_PIPELINES,
         time_steps=TOUR_TIME_STEPS, page_images: int = 12) -> None:
    """Show a first picture, a part of the table, and a page, within a time that ordinary machines keep.

    What is finished is kept, so that another run goes on where this one was ended.

    Args:
        demo: where things are.
        workers: rows at the same time.
        minutes: after most of this time no further row is started.
        detectors, pipelines, time_steps: what the table is to have; the first of each are in the picture and the page.
        page_images: test images of the page.
    """
    # Weights are calibrated by gradient descent, for several times as long as all else takes: last.
    jobs = sorted(jobs_of(detectors, pipelines, time_steps), key=lambda job: job[1] == 'advanced')
    picture = demo.work_dir / 'picture.png'
    pictures = {(detectors[0], pipelines[0], time_steps[0]): picture}
    rows, late = complete(demo, jobs, workers, pictures, time.time() + 60 * minutes * TABLE_SHARE)
    text = write_table(demo, rows)
    print(f'\n{text}\n', flush=True)
    if late:
        print(f'{late} rows were not begun, to end in time; another run continues with them\n', flush=True)
    print(f'the page: {detectors[0]} on {page_images} test images', flush=True)
    page = make_page(demo, detectors[0], time_steps, page_images)
    print(f'\npicture  {picture}\ntable    {demo.work_dir / "table.md"} (figure: {demo.work_dir / "map.png"})\n'
          f'page     {page}', flush=True)
