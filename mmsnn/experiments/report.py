"""A page about one model: the runs that it shows, and the config that they use."""
import copy
import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope

from ..files import save_json
from ..machine import CORES
from ..openmmlab.agreement import AgreementMetric
from ..openmmlab.checkpoints import check_checkpoint
from ..openmmlab.hooks import HOOK_TYPES, METRIC_TYPES, calibration_hook, spellings
from ..openmmlab.metrics import SpikeMetric
from ..openmmlab.preflight import check_of_ann
from ..openmmlab.scripts import read_config
from .inspection import inspect
from .page import write_page
from .runs import complete, fingerprint, jobs_of, shown_metric, stored_rows
from .sweep import check_pipelines, check_testable


def make_report(config: str, checkpoint: str, pipelines: Sequence[str], time_steps: Sequence[int], command: str, *,
                num_images: int | None = None, test_images: int | None = None, seeds: int = 1,
                options: dict | None = None, out: Path | None = None, ceiling: bool = False, workers: int = CORES,
                restart: bool = False) -> Path:
    """Run pipelines x time steps x seeds, look into every layer, and write the page with its figures and numbers.

    Runs that are finished are not run again after an interruption.

    Args:
        config: of a spiking detector or classifier with CalibrationHook.
        checkpoint: of its ANN.
        pipelines: names, with options behind a colon.
        time_steps: numbers of time steps.
        command: what the user typed, for the page to show.
        num_images: calibration images, or None for the config's own.
        test_images: evenly spaced over the test set, or None for all.
        seeds: scores are means over so many, from 0 on; all else is of seed 0.
        options: settings of the config to override.
        out: folder to write to; by default ``work_dirs/report/<config name>``.
        ceiling: also test the ANN with quantised activations, without time.
        workers: runs at the same time.
        restart: forget the runs of an earlier report.

    Returns:
        The page.

    Raises:
        ValueError: no such pipeline or option, no CalibrationHook, too few test images, or the folder holds another
            report.
        CheckpointError: the checkpoint is calibrated already.
    """
    out = out or Path('work_dirs', 'report', Path(config).stem)
    check_checkpoint(checkpoint)
    check_of_ann(checkpoint)
    cfg = read_config(config, options)  # what it imports may add pipelines and threshold rules
    check_pipelines(pipelines)
    check_testable(cfg)
    calibration_hook(cfg)  # complains where there is none, or a wrong one
    out.mkdir(parents=True, exist_ok=True)
    made_with = dict(config=config, checkpoint=checkpoint, options=options or {}, num_images=num_images,
                     test_images=test_images, fingerprint=fingerprint(cfg, checkpoint))
    try:
        stored = stored_rows(out / 'rows.json', made_with, restart)
    except ValueError as error:
        raise ValueError(f'{error} (another --out, or --restart, forgets earlier runs)') from error
    # Rows of earlier versions lack what the page shows of the first seed.
    wanted = dict(ann='scores_without')
    stored['rows'] = [row for row in stored['rows'] if row['seed'] or wanted.get(row['pipeline'], 'parts') in row]
    cfg = derive(cfg, num_images, test_images, out)
    temporary = out / 'config.tmp.py'
    cfg.dump(temporary)
    temporary.replace(out / 'config.py')
    axes = pipelines, [None], [None], [None], time_steps
    worker: tuple = str(out / 'config.py'), checkpoint, {}, str(out), ceiling
    rows = complete(out / 'rows.json', stored, jobs_of(axes, seeds), inspect, worker, workers)
    return write_page(out, cfg, dict(made_with, command=command, metric=shown_metric(rows[0]), rows=rows))


def derive(cfg: Config, images: int | None, test_images: int | None, folder: Path) -> Config:
    """The config that all runs of a report use: with the metrics that it shows, and with fewer images where asked.

    Args:
        cfg: the user's.
        images: calibration images, or None for the config's own.
        test_images: evenly spaced over the test set, or None for all.
        folder: gets the annotations of these test images, where the config's metrics read annotations from a file.

    Raises:
        ValueError: other metrics cannot stand beside the config's, or its test set cannot be limited.
    """
    if isinstance(cfg.test_evaluator, dict) and 'metrics' in cfg.test_evaluator:  # such as MultiDatasetsEvaluator
        raise ValueError(f'{cfg.test_evaluator["type"]}, the test evaluator, takes no metrics beside its own, as a '
                         'report needs: let test_evaluator be a metric, or a list of metrics, of one test data set')
    cfg = copy.deepcopy(cfg)
    if images is not None:
        next(hook for hook in cfg.custom_hooks if hook['type'] in HOOK_TYPES).num_images = images
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    if test_images is not None:
        chosen = choose_images(cfg, test_images)
        for metric in metrics:
            if metric.get('ann_file'):
                metric.ann_file = str(reduce_annotations(Path(metric.ann_file), chosen, folder))
    for metric in metrics:
        if metric['type'] in METRIC_TYPES:
            metric.pop('prefix', None)  # the page knows their results by the usual names
    own = [dict(type=spellings(kind)[0]) for kind in (SpikeMetric, AgreementMetric)
           if not any(metric['type'] in spellings(kind) for metric in metrics)]
    cfg.test_evaluator = [*metrics, *own]
    return cfg


def choose_images(cfg: Config, count: int) -> set:
    """Let a config test ``count`` images, evenly spaced over its test set; return their names, where they have any.

    Raises:
        ValueError: there are fewer, or the data set cannot be limited.
    """
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if not 1 <= count <= len(dataset):
        raise ValueError(f'--test-images must be from 1 to {len(dataset)}, the size of the test set, not {count}')
    if not isinstance(dataset, BaseDataset):  # but one around others, such as ConcatDataset
        raise ValueError(f'{type(dataset).__name__}, the test data set, takes no indices: omit --test-images')
    before = cfg.test_dataloader.dataset.get('indices')
    cfg.test_set_size = len(dataset)  # of how many images these are, for the page
    numbers = [number * len(dataset) // count for number in range(count)]
    names = {Path(info['img_path']).name for info in map(dataset.get_data_info, numbers) if 'img_path' in info}
    cfg.test_dataloader.dataset.indices = [before[n] for n in numbers] if isinstance(before, (list, tuple)) else numbers
    return names


def reduce_annotations(source: Path, names: set, folder: Path) -> Path:
    """Write the part of a COCO annotation file that is about some images: others would count as missed."""
    coco = json.loads(source.read_text(encoding='utf-8'))
    coco['images'] = [image for image in coco['images'] if Path(image['file_name']).name in names]
    kept = {image['id'] for image in coco['images']}
    if len(kept) != len(names):
        raise ValueError(f'{source} has {len(kept)} images of the {len(names)} to be tested: omit --test-images')
    coco['annotations'] = [entry for entry in coco['annotations'] if entry['image_id'] in kept]
    path = folder / 'annotations.json'
    save_json(coco, path)
    return path
