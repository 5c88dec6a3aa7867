"""Write a page that shows what a conversion does: scores, errors, firing rates, energy, memory, and pictures.

    mmsnn report CONFIG CKPT --pipelines none light signed --time-steps 4 8 16

CONFIG is that of a spiking detector or classifier with mmsnn.CalibrationHook, CKPT the checkpoint of its ANN. Writes to
a folder ``index.html``, which needs no other file and no network, its figures, and ``report.json`` with every number.
Each score is what ``mmsnn test`` gives with the folder's ``config.py``. Runs that are finished (``rows.json``) are
not run again after an interruption.
"""
import argparse
from pathlib import Path

from ..machine import CORES
from .arguments import PIPELINE_HELP, add_model, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument('--time-steps', type=positive, nargs='+', default=[4, 8, 16], metavar='T',
                        help='numbers of time steps (default: 4 8 16)')
    parser.add_argument('--pipelines', nargs='+', default=['none', 'light', 'signed'], metavar='NAME[:OPTION=VALUE,..]',
                        help=f'{PIPELINE_HELP} (default: none light signed)')
    parser.add_argument('--num-images', type=positive, metavar='N', help="calibration images (default: the config's)")
    parser.add_argument('--test-images', type=int, metavar='N',
                        help='test images, evenly spaced over the test set (default: all)')
    parser.add_argument('--seeds', type=positive, default=1, metavar='N',
                        help='scores are means over so many seeds, from 0 on (default: 1); all else is of seed 0')
    parser.add_argument('--ceiling', action='store_true',
                        help='also test the ANN with quantised activations, without time: what rate coding can reach')
    parser.add_argument('--workers', type=positive, default=CORES, metavar='N',
                        help='runs at the same time (default: %(default)s)')
    parser.add_argument('--out', type=Path, metavar='DIR',
                        help='folder to write to (default: work_dirs/report/<config name>)')
    parser.add_argument('--restart', action='store_true', help='forget the runs of an earlier report')


def run(args: argparse.Namespace) -> None:
    import shlex

    from ..experiments.report import make_report
    page = make_report(args.config, args.checkpoint, args.pipelines, args.time_steps,
                       shlex.join(['mmsnn', 'report', *args.typed]), num_images=args.num_images,
                       test_images=args.test_images, seeds=args.seeds, options=args.cfg_options, out=args.out,
                       ceiling=args.ceiling, workers=args.workers, restart=args.restart)
    print(f'saved {page}, {page.parent / "report.json"} and {page.parent / "figures"}')
