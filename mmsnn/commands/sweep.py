"""Every comparison of the paper on your own model: methods x time steps x seeds, in one table and one figure.

    mmsnn sweep CONFIG CKPT --time-steps 4 8 16 32 --pipelines none light advanced --seeds 5
    mmsnn sweep CONFIG CKPT --time-steps 16 --pipelines light --num-images 32 64 128 256     [Table 6]
    mmsnn sweep CONFIG CKPT --time-steps 16 32 --pipelines none --thresholds max-layer mmse --shift none bias
    mmsnn sweep CONFIG CKPT --time-steps 4 --pipelines signed signed:max_spikes=1 signed:bias=False,rounds=2

CONFIG is that of a spiking detector or classifier with mmsnn.CalibrationHook, CKPT the checkpoint of its ANN. Each
row is what ``mmsnn test`` gives for the same settings; a seed chooses the calibration images. Rows go to
``rows.json`` in the work folder as they finish and are not run again after an interruption.
"""
import argparse
from pathlib import Path

from ..machine import CORES
from .arguments import PIPELINE_HELP, add_model, positive

RULES = [rule + granularity for rule in ('mmse', 'percentile', 'max', 'balanced') for granularity in ('', '-layer')]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument('--time-steps', type=positive, nargs='+', default=[8, 16, 32, 64], metavar='T',
                        help='numbers of time steps (default: 8 16 32 64)')
    parser.add_argument('--pipelines', nargs='+', default=['none', 'light', 'advanced'],
                        metavar='NAME[:OPTION=VALUE,..]', help=f'{PIPELINE_HELP} (default: none light advanced)')
    parser.add_argument('--thresholds', nargs='+', default=[None], choices=RULES, metavar='RULE',
                        help=f"{', '.join(RULES)} (default: the pipeline's own)")
    parser.add_argument('--shift', nargs='+', default=[None], choices=['bias', 'potential', 'none'], metavar='SHIFT',
                        help="how neurons round: bias, potential, or none, which floors (default: the pipeline's own)")
    parser.add_argument('--num-images', type=positive, nargs='+', default=[None], metavar='N',
                        help="calibration images (default: the config's)")
    parser.add_argument('--seeds', type=positive, default=1, metavar='N', help='how many seeds, from 0 on (default: 1)')
    parser.add_argument('--ceiling', action='store_true',
                        help='also test the ANN with quantised activations, without time: what rate coding can reach')
    parser.add_argument('--metric', help='what the table shows (default: mAP or top-1 accuracy)')
    parser.add_argument('--workers', type=positive, default=CORES, metavar='N',
                        help='runs at the same time (default: %(default)s)')
    parser.add_argument('--work-dir', type=Path, metavar='DIR',
                        help='folder to write to (default: work_dirs/sweep/<config name>)')
    parser.add_argument('--restart', action='store_true', help='forget the rows of an earlier sweep')


def run(args: argparse.Namespace) -> None:
    from ..experiments.sweep import run_sweep
    axes = args.pipelines, args.thresholds, args.shift, args.num_images, args.time_steps
    text, written = run_sweep(args.config, args.checkpoint, axes, seeds=args.seeds, options=args.cfg_options,
                              work_dir=args.work_dir, ceiling=args.ceiling, metric=args.metric, workers=args.workers,
                              restart=args.restart)
    print(f'\n{text}\n\nsaved {", ".join(map(str, written))}')
