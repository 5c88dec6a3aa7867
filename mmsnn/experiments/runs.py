"""Runs of one model side by side, methods x time steps x seeds, resumable: what tools/sweep.py and report.py share."""
import contextlib
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import save_json
from ..progress import progress_bar
from .jobs import run_jobs
from .methods import job_choices, job_options, parse_pipeline, unused_options, written

if TYPE_CHECKING:
    from mmengine.runner import Runner

AXES = ('pipeline', 'threshold', 'shift', 'num_images', 'time_steps', 'seed')
CEILING = '(ceiling)'
OF_WORKERS = 'prefetch_factor', 'timeout', 'multiprocessing_context'  # a DataLoader refuses them where it has none
METRICS = ('accuracy/top1', 'coco/bbox_mAP')  # which one the table shows, where a model has several


class Worker:
    """One process's copy of the model, with what the runs of one seed share."""

    _instance: tuple | None = None  # what it was made for, and the worker

    def __init__(self, config: str, checkpoint: str, options: dict, work_dir: str, ceiling: bool) -> None:
        from mmengine.config import Config
        self.ceiling = ceiling
        self.config, self.checkpoint, self.options, self.work_dir = config, checkpoint, options, work_dir
        self.cfg = Config.fromfile(config)
        self.cfg.merge_from_dict(options)
        self.cfg.update(work_dir=str(Path(work_dir, 'log')), load_from=checkpoint, log_level='ERROR')
        self.cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
        for option in OF_WORKERS:
            self.cfg.test_dataloader.pop(option, None)
        for metric in metrics_of(self.cfg):
            if not metric.get('format_only'):
                metric.pop('outfile_prefix', None)  # runs side by side would read each other's predictions from there
        self._shared: tuple | None = None
        self._runner: Runner | None = None
        self.own = hook_of(self.cfg)
        self.num_images = 0
        self.running: dict = {}

    @classmethod
    def get(cls, *arguments) -> 'Worker':
        if cls._instance is None or cls._instance[0] != arguments:
            cls._instance = arguments, cls(*arguments)
        return cls._instance[1]

    def run(self, job: dict) -> dict:
        logging.disable(logging.WARNING)
        with open(os.devnull, 'w') as quiet, contextlib.redirect_stdout(quiet):
            return self.ann() if job['pipeline'] == 'ann' else self.spiking(job)

    def ann(self) -> dict:
        from mmengine.runner import Runner

        from mmsnn.openmmlab.hooks import plain_config
        runner = Runner.from_cfg(plain_config(self.cfg))
        return dict(self.test(runner), **self.details(runner, None))

    def spiking(self, job: dict) -> dict:
        import mmsnn
        from mmsnn.analysis.cost import together
        from mmsnn.openmmlab.wrapper import spiking_parts
        runner, hook, _ = self.spiking_runner()
        parts = spiking_parts(runner.model)
        for part in parts.values():
            part.convert(time_steps=job['time_steps'])
        hook.pipeline, hook.seed = parse_pipeline(job['pipeline'])[0], job['seed']
        hook.options = {**self.running, **job_options(job, self.own)}
        hook.num_images = job['num_images'] or self.num_images
        started = time.time()
        batches, histograms = self.calibration_data()
        hook.calibrate_parts(parts, batches, runner.logger, histograms=histograms, **hook.options)
        calibrated = time.time()
        with contextlib.ExitStack() as stack:
            counters = [stack.enter_context(mmsnn.CostCounter(part.snn)) for part in parts.values()]
            metrics = self.test(runner)
        tested = time.time()
        cost = together([counter.cost for counter in counters])
        row = dict(metrics, **cost.per_image(), levels=self.levels(parts.values()),
                   calibration_seconds=round(calibrated - started, 2),
                   test_seconds=round(tested - calibrated, 2), choices=job_choices(job, self.own),
                   **self.details(runner, job))
        if self.ceiling:
            for part in parts.values():
                part.runs_as = 'quantised'
            row.update({f'{key} {CEILING}': value for key, value in test(runner).items()})
            for part in parts.values():
                part.runs_as = 'snn'
        return row

    @staticmethod
    def levels(parts: Iterable) -> int:
        """How many values a neuron can emit in one step."""
        return max(neuron.rule.values for part in parts for neuron in part.snn.neurons.values())

    def spiking_runner(self) -> tuple:
        """The runner of the spiking model, its CalibrationHook and its first spiking part; made once."""
        from mmengine.runner import Runner

        import mmsnn
        from mmsnn.openmmlab.checks import RUNNING
        from mmsnn.openmmlab.wrapper import spiking_parts
        if self._runner is None:
            self._runner = Runner.from_cfg(self.cfg)
            self._runner.load_or_resume()
            hook = next(hook for hook in self._runner.hooks if isinstance(hook, mmsnn.CalibrationHook))
            self.num_images = hook.num_images
            self.running = {key: hook.options[key] for key in RUNNING if key in hook.options}
            self.running['progress'] = hook.options['progress'] = False  # rows tell how far the sweep is
        hook = next(hook for hook in self._runner.hooks if isinstance(hook, mmsnn.CalibrationHook))
        part = next(iter(spiking_parts(self._runner.model).values()))
        return self._runner, hook, part

    def calibration_data(self) -> tuple:
        """The hook's batches, and histograms of the ANN's activations on them; made once for an amount and a seed."""
        import mmsnn
        runner, hook, part = self.spiking_runner()
        key = hook.num_images, hook.seed
        if self._shared is None or self._shared[0] != key:
            batches = list(hook.batches(runner.model, runner.cfg))
            self._shared = key, (batches, mmsnn.observe(part.snn, part.inputs(batches)))
        return self._shared[1]

    def test(self, runner) -> dict:
        return test(runner)

    def details(self, runner, job: dict | None) -> dict:
        """What else a row shall hold of the model just tested, which is the ANN where there is no job."""
        return {}


def metrics_of(cfg) -> list[dict]:
    """The metrics that a config tests with."""
    return list(cfg.test_evaluator) if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]


def test(runner) -> dict:
    """Test a runner's model; where nothing at all was detected CocoMetric has no result, here it is a mAP of zero."""
    metrics = dict(runner.test())
    for metric in runner.test_loop.evaluator.metrics:
        if type(metric).__name__ == 'CocoMetric' and not metric.format_only:
            for kind, item in itertools.product(metric.metrics, metric.metric_items or ['mAP']):
                if kind in ('bbox', 'segm'):
                    metrics.setdefault(f'{metric.prefix}/{kind}_{item}', 0.)
    return metrics


def fingerprint(cfg, checkpoint: str) -> str:
    """Stands for what rows depend on beside their own settings: the model, its weights, and the images."""
    from mmsnn.openmmlab.hooks import calibration_hook
    from mmsnn.openmmlab.images import training_set
    hook, plain = calibration_hook(cfg), cfg.to_dict()
    loader = plain['test_dataloader']
    used = [plain['model'], loader.get('dataset'), loader.get('batch_size'), plain['test_evaluator'],
            hook.dataset or training_set(plain), hook.images, hook.num_images, hook.batch_size]
    found = hashlib.sha256(json.dumps(used, default=str).encode())
    if '://' not in checkpoint:
        found.update(Path(checkpoint).read_bytes())
    return found.hexdigest()[:16]


def hook_of(cfg) -> tuple[str, dict]:
    """Pipeline and options of a config's CalibrationHook."""
    from mmsnn.openmmlab.hooks import calibration_hook
    from mmsnn.openmmlab.preflight import spiking_models
    hook = calibration_hook(cfg)
    chosen = next(((time_steps, coding) for _, time_steps, coding in spiking_models(cfg.model)), (1,))
    return hook.named(*chosen), {key: value for key, value in hook.choices().items() if key != 'seed'}


def evaluate(worker: tuple, job: dict) -> dict:
    """Run one job in a worker process and return its row."""
    return dict(job, **Worker.get(*worker).run(job))


def jobs_of(axes: tuple, seeds: int) -> list[dict]:
    """The ANN, and every combination of pipelines, thresholds, shifts, numbers of images and time steps, by seed."""
    # Seeds outermost: what one seed's runs share is made once. The longest runs of a seed first.
    return [dict.fromkeys(AXES, None) | dict(pipeline='ann')] + [
        dict(zip(AXES, (*settings, seed))) for seed in range(seeds)
        for settings in sorted(itertools.product(*axes), key=lambda s: (s[3] or 0, -s[4]))]


def stored_rows(path: Path, made_with: dict, restart: bool = False) -> dict:
    """What a file holds of earlier runs: ``made_with`` and ``rows``.

    Raises:
        ValueError: the file was made with something else, or is damaged.
    """
    if restart:
        path.unlink(missing_ok=True)
    if not path.is_file():
        return dict(made_with, rows=[])
    try:
        stored = json.loads(path.read_text())
        _by_settings(stored['rows'])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is damaged ({type(error).__name__}: {error})') from error
    made_with = json.loads(json.dumps(made_with))  # where tuples are lists
    if not made_with.items() <= (dict(fingerprint=made_with.get('fingerprint')) | stored).items():
        raise ValueError(f'{path} holds runs of another config, checkpoint or options, or of these before a change')
    return stored


def store(path: Path, made_with: dict, rows: dict[tuple, dict]) -> None:
    """Write rows by their settings, and keep those that another run in the same folder has stored meanwhile.

    Raises:
        ValueError: that other run is one of something else.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):  # not every system has locks, nor every file system
            import fcntl
            fcntl.flock(folder, fcntl.LOCK_EX)
        rows = _by_settings(stored_rows(path, made_with)['rows']) | rows
        save_json(dict(made_with, rows=list(rows.values())), path)
    finally:
        os.close(folder)


def _by_settings(rows: list[dict]) -> dict[tuple, dict]:
    return {tuple(row[axis] for axis in AXES): row for row in rows}


def complete(path: Path, stored: dict, jobs: list[dict], function: Callable, worker: tuple, workers: int,
             metric: str | None = None) -> list[dict]:
    """Run the jobs whose rows are not stored yet, and keep a file up to date while they finish.

    Args:
        path: the json file; rows of other jobs in it are kept.
        stored: from :func:`stored_rows`.
        jobs: settings on the AXES.
        function: :func:`evaluate`, or another that is importable by name and takes a worker and a job.
        worker: arguments of :class:`Worker`.
        workers: runs at the same time.
        metric: what to print of each row.

    Returns:
        The rows, in the order of the jobs.
    """
    from mmengine.config import Config
    rows = _by_settings(stored['rows'])
    made_with = {key: value for key, value in stored.items() if key != 'rows'}
    ceiling = worker[-1]
    cfg = Config.fromfile(worker[0])
    cfg.merge_from_dict(worker[2])
    own = hook_of(cfg)

    def done(job: dict) -> bool:
        row = rows.get(tuple(job.values()))
        if row is None or row.get('choices') != job_choices(job, own):
            return False
        if row['pipeline'] == 'ann':
            return True
        return 'levels' in row and (not ceiling or any(CEILING in key for key in row))  # earlier versions had none

    todo = [job for job in jobs if not done(job)]
    print(f'{len(todo)} of {len(jobs)} runs to do, {max(1, min(workers, len(todo)))} at a time; {path.parent}',
          flush=True)
    if unused := unused_options(jobs, own):
        print(unused, flush=True)
    bar = progress_bar(run_jobs(function, [(worker, job) for job in todo], workers), 'runs', len(todo), unit='run')
    for row in bar:
        rows[tuple(row[axis] for axis in AXES)] = row
        store(path, made_with, rows)
        shown = shown_metric(row, metric)
        bar.write(', '.join(f'{axis} {row[axis]}' for axis in AXES if row[axis] is not None)
                  + (f' ({written(row["choices"])})' if row.get('choices') else '') + f': {shown} {row[shown]:.4f}')
    return [rows[tuple(job.values())] for job in jobs]


def shown_metric(row: dict, wanted: str | None = None) -> str:
    """The metric that tables and figures show.

    Raises:
        ValueError: the row has no number of this name, or none at all.
    """
    numbers = [name for name, value in list(row.items())[len(AXES):]
               if isinstance(value, Real) and not isinstance(value, int)]  # whole numbers count something
    if not numbers:
        raise ValueError('test_evaluator gives the ANN no score: it needs a metric such as CocoMetric or Accuracy')
    if wanted is not None and wanted not in numbers:
        raise ValueError(f'--metric must be one of {", ".join(numbers)}, not {wanted}')
    return wanted or next((metric for metric in METRICS if metric in numbers), numbers[0])
