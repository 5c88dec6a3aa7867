"""Write a calibrated network for other software, as NIR or ONNX.

    mmsnn export my_classifier_spiking.py spiking.pth -o spiking.onnx --format onnx

The checkpoint is a calibrated one, or that of the ANN, which is then calibrated as by ``mmsnn calibrate``. Of a
detector the backbone is written. The file takes images as the network does: after the data preprocessor of the config.
docs/export.md says what the formats hold and how to run them.
"""
import argparse

from .arguments import add_model, add_out, add_size

FORMATS = 'nir', 'onnx'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, 'calibrated checkpoint, or that of the ANN')
    add_out(parser, 'file to write')
    parser.add_argument('--format', required=True, choices=FORMATS)
    add_size(parser, help='of the images that the file is for (default: that of the first test image)')


def run(args: argparse.Namespace) -> None:
    import torch

    from ..export.formats import export
    from ..files import check_writable
    from ..openmmlab.checkpoints import check_checkpoint
    from ..openmmlab.scripts import load_calibrated, only_part
    check_checkpoint(args.checkpoint)
    check_writable(args.out, args.config, args.checkpoint)
    runner, model, _ = load_calibrated(args.config, args.checkpoint, args.cfg_options)
    snn = only_part(model).snn
    if args.size is None:
        example = model.data_preprocessor(next(iter(runner.test_dataloader)), False)['inputs'][:1]
    else:
        example = torch.zeros(1, 3, *args.size, device=next(model.parameters()).device)
    export(snn, example, args.out, args.format)
    runner.logger.info(f'saved {args.out}, {args.out.stat().st_size / 1e6:.1f} MB, for images of '
                       f'{example.shape[2]} x {example.shape[3]} pixels, T = {snn.time_steps}')
