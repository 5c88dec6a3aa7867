"""Strip a training checkpoint to what inference needs.

    mmsnn publish-checkpoint work_dirs/my_detector/epoch_12.pth my_detector.pth

Weights are kept in half precision, class names and the epoch beside them; nothing that names paths of the machine that
trained.
"""
import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', help='checkpoint of a training run')
    parser.add_argument('target', type=Path, help='file to write, for example checkpoints/NAME.pth')


def run(args: argparse.Namespace) -> None:
    from ..files import check_writable
    from ..openmmlab.checkpoints import publish
    check_writable(args.target, args.source)
    publish(args.source, args.target)
