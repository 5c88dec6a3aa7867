"""Run what ``mmsnn export`` writes in other software, and compare.

    mmsnn check-export my_classifier_spiking.py spiking.pth --format onnx

The NIR file is read back and simulated by SpikingJelly, spikes are compared neuron by neuron; the ONNX file is run by
onnxruntime, outputs are compared. Images come from the test data set.
"""
import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arguments import add_model, positive
from .export import FORMATS

if TYPE_CHECKING:
    from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, 'calibrated checkpoint, or that of the ANN')
    parser.add_argument('--format', required=True, choices=FORMATS)
    parser.add_argument('--num-images', type=positive, default=100)
    parser.add_argument('--double', action='store_true', help='compute in float64 on both sides (NIR only)')


def run(args: argparse.Namespace) -> None:
    from itertools import islice

    from ..export.checking import check
    from ..openmmlab.checkpoints import check_checkpoint
    from ..openmmlab.scripts import load_calibrated, only_part
    if args.double and args.format != 'nir':
        raise ValueError('--double compares NIR files; the ONNX model computes in float32')
    check_checkpoint(args.checkpoint)
    runner, model, _ = load_calibrated(args.config, args.checkpoint, args.cfg_options)
    loader = runner.test_dataloader
    batches = [model.data_preprocessor(data, False)['inputs'].cpu()
               for data in islice(loader, -(-args.num_images // loader.batch_size))]
    check(only_part(model).snn.cpu(), together(batches)[:args.num_images], args.format, args.double)


def together(batches: 'Sequence[Tensor]') -> 'Tensor':
    """All images in one batch.

    Raises:
        ValueError: they are of several sizes.
    """
    import torch
    sizes = sorted({tuple(batch.shape[2:]) for batch in batches})
    if len(sizes) > 1:
        raise ValueError(f'the test images have several sizes, such as {sizes[0]} and {sizes[1]}, and a file is for '
                         'one: let the test pipeline of the config resize them to one')
    return torch.cat(tuple(batches))
