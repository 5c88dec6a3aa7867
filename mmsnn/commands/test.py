"""Test a model, spiking or not; a spiking one whose checkpoint is that of its ANN is calibrated first.

    mmsnn test my_detector_spiking.py my_detector.pth

The arguments are those of mmdet's or mmpretrain's own script, which does the work: CONFIG CHECKPOINT [--work-dir DIR]
[--out FILE] [--show-dir DIR] [--tta] [--launcher NAME] [--cfg-options KEY=VALUE ...]; ``mmsnn test CONFIG --help``
shows all of them.
"""
import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = '%(prog)s CONFIG CHECKPOINT [OPTION ...]'
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    from ..openmmlab.scripts import run_script
    run_script('test', args.arguments)
