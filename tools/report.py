"""A page that shows what a conversion does: scores, errors, firing rates, energy, memory, and pictures.

    python tools/report.py CONFIG CKPT --pipelines none light signed --time-steps 4 8 16

CONFIG is that of a spiking detector or classifier with mmsnn.CalibrationHook, CKPT the checkpoint of its ANN. Writes to
a folder ``index.html``, which needs no other file and no network, its figures, and ``report.json`` with every number.
Each score is what ``tools/test.py`` gives with the folder's ``config.py``. Runs that are finished (``rows.json``) are
not run again after an interruption.
"""
import argparse
import copy
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, init_default_scope

from mmsnn.experiments.inspection import inspect
from mmsnn.experiments.jobs import CORES, save_json
from mmsnn.experiments.page import write_page
from mmsnn.experiments.runs import complete, jobs_of, parse_pipeline, shown_metric, stored_rows


def derive(cfg: Config, images: int | None, test_images: int | None, folder: Path) -> Config:
    """The config that all runs of a report use: with the metrics that it shows, and with fewer images where asked.

    Args:
        cfg: the user's.
        images: calibration images, or None for the config's own.
        test_images: evenly spaced over the test set, or None for all.
        folder: gets the annotations of these test images, where the config's metrics read annotations from a file.
    """
    from mmsnn.openmmlab.hooks import HOOK_TYPES
    cfg = copy.deepcopy(cfg)
    if images is not None:
        next(hook for hook in cfg.custom_hooks if hook['type'] in HOOK_TYPES).num_images = images
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    if test_images is not None:
        chosen = choose_images(cfg, test_images)
        for metric in metrics:
            if metric.get('ann_file'):
                metric.ann_file = str(reduce_annotations(Path(metric.ann_file), chosen, folder))
    own = [dict(type=name) for name in ('mmsnn.SpikeMetric', 'mmsnn.AgreementMetric')
           if name not in [metric['type'] for metric in metrics]]
    cfg.test_evaluator = [*metrics, *own]
    return cfg


def choose_images(cfg: Config, count: int) -> set:
    """Let a config test ``count`` images, evenly spaced over its test set; return their names, where they have any.

    Raises:
        ValueError: there are fewer, or the data set cannot be limited.
    """
    import mmsnn  # noqa: F401 (registers what the config may name)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if not 1 <= count <= len(dataset):
        raise ValueError(f'--test-images must be from 1 to {len(dataset)}, the size of the test set, not {count}')
    if not hasattr(dataset, 'get_data_info'):
        raise ValueError(f'{type(dataset).__name__}, the test data set, takes no indices: omit --test-images')
    before = cfg.test_dataloader.dataset.get('indices')
    numbers = [number * len(dataset) // count for number in range(count)]
    names = {Path(info['img_path']).name for info in map(dataset.get_data_info, numbers) if 'img_path' in info}
    cfg.test_dataloader.dataset.indices = [before[n] for n in numbers] if isinstance(before, (list, tuple)) else numbers
    return names


def reduce_annotations(source: Path, names: set, folder: Path) -> Path:
    """Write the part of a COCO annotation file that is about some images: others would count as missed."""
    coco = json.loads(source.read_text())
    coco['images'] = [image for image in coco['images'] if Path(image['file_name']).name in names]
    kept = {image['id'] for image in coco['images']}
    if len(kept) != len(names):
        raise ValueError(f'{source} has {len(kept)} images of the {len(names)} to be tested: omit --test-images')
    coco['annotations'] = [entry for entry in coco['annotations'] if entry['image_id'] in kept]
    path = folder / 'annotations.json'
    save_json(coco, path)
    return path


def main() -> None:
    from mmsnn import PIPELINES
    from mmsnn.openmmlab.hooks import calibration_hook

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the spiking model')
    parser.add_argument('checkpoint', help='checkpoint of the ANN')
    parser.add_argument('--time-steps', type=int, nargs='+', default=[4, 8, 16])
    parser.add_argument('--pipelines', nargs='+', default=['none', 'light', 'signed'], metavar='NAME[:OPTION=VALUE,..]',
                        help=f'of {", ".join(PIPELINES)}; options replace choices')
    parser.add_argument('--num-images', type=int, help="calibration images (default: the config's)")
    parser.add_argument('--test-images', type=int, help='test images, evenly spaced over the test set (default: all)')
    parser.add_argument('--seeds', type=int, default=1,
                        help='scores are means over so many seeds, from 0 on; all else is of seed 0')
    parser.add_argument('--ceiling', action='store_true',
                        help='also test the ANN with quantised activations, without time: what rate coding can reach')
    parser.add_argument('--workers', type=int, default=CORES, help='runs at the same time')
    parser.add_argument('--out', type=Path, help='folder to write to (default: work_dirs/report/<config name>)')
    parser.add_argument('--restart', action='store_true', help='forget the runs of an earlier report')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        help='override settings of the config, such as custom_hooks.0.batch_size=4')
    args = parser.parse_args()
    out = args.out or Path('work_dirs', 'report', Path(args.config).stem)
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        parser.error(f'checkpoint {args.checkpoint} does not exist')
    made_with = dict(config=args.config, checkpoint=args.checkpoint, options=args.cfg_options,
                     num_images=args.num_images, test_images=args.test_images)
    try:
        cfg = Config.fromfile(args.config)  # what it imports may add pipelines and threshold rules
        for pipeline in args.pipelines:
            parse_pipeline(pipeline)
        cfg.merge_from_dict(args.cfg_options)
        calibration_hook(cfg)  # complains where there is none, or a wrong one
        out.mkdir(parents=True, exist_ok=True)
        stored = stored_rows(out / 'rows.json', made_with, args.restart)
        cfg = derive(cfg, args.num_images, args.test_images, out)
    except ValueError as error:
        parser.error(f'{error} (another --out, or --restart, forgets earlier runs)' if 'holds runs' in str(error)
                     else str(error))
    temporary = out / 'config.tmp.py'
    cfg.dump(temporary)
    temporary.replace(out / 'config.py')

    axes = args.pipelines, [None], [None], [None], args.time_steps
    worker = str(out / 'config.py'), args.checkpoint, {}, str(out), args.ceiling
    rows = complete(out / 'rows.json', stored, jobs_of(axes, args.seeds), inspect, worker, args.workers)
    command = shlex.join(['python', 'tools/report.py', *sys.argv[1:]])
    page = write_page(out, cfg, dict(made_with, command=command, metric=shown_metric(rows[0]), rows=rows))
    print(f'saved {page}, {out / "report.json"} and {out / "figures"}')


if __name__ == '__main__':
    main()
