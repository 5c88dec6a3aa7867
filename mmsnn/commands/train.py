"""Train an ANN.

    mmsnn train my_detector.py --work-dir work_dirs/my_detector

The arguments are those of mmdet's or mmpretrain's own script, which does the work: CONFIG [--work-dir DIR] [--amp]
[--resume] [--launcher NAME] [--cfg-options KEY=VALUE ...]; ``mmsnn train CONFIG --help`` shows all of them.
"""
import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = '%(prog)s CONFIG [OPTION ...]'
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    from ..openmmlab.scripts import run_script
    run_script('train', args.arguments)
