"""Give a checkpoint from elsewhere the names of a config.

    mmsnn convert-checkpoint configs/resnet_cifar/resnet20_cifar10.py resnet20-12fca82f.th resnet20_cifar10.pth

For checkpoints of the same architecture under other names, such as those of pytorch_resnet_cifar10 or torchvision.
Tensors are matched in the order in which both networks register them; every shape, and the last part of every name
(weight, bias, running_mean ...), must agree. Test the result (``mmsnn test CONFIG OUT``): it must reach the accuracy
that the checkpoint is known for.
"""
import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config of the ANN, or of its spiking model')
    parser.add_argument('checkpoint', type=Path, help='checkpoint to read; no code in it is executed')
    parser.add_argument('out', type=Path, help='checkpoint to write')


def run(args: argparse.Namespace) -> None:
    from ..files import check_writable
    from ..openmmlab.checkpoints import convert_checkpoint
    from ..openmmlab.scripts import read_config
    check_writable(args.out, args.config, args.checkpoint)
    try:
        names = convert_checkpoint(read_config(args.config), args.checkpoint, args.out)
    except ValueError as error:
        raise ValueError(f'{args.checkpoint} does not fit {args.config}: {error}') from error
    print(f'{len(names)} tensors renamed, from {names[0]} to {names[-1]}; saved {args.out}')
