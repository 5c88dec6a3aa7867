"""Calibrate a spiking model and keep the result as a checkpoint.

    mmsnn calibrate my_detector_spiking.py my_detector.pth -o spiking.pth

The config is that of the spiking model: mmsnn.SpikingDetector, SpikingBackbone or SpikingClassifier, and
mmsnn.CalibrationHook. The result tests without calibrating again (``mmsnn test CONFIG OUT.pth``) and loads with
mmdet's ``init_detector(CONFIG, 'OUT.pth')``.
"""
import argparse

from .arguments import add_model, add_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_out(parser, 'calibrated checkpoint to write')
    parser.add_argument('--work-dir', help='where the log goes (default: work_dirs/<config name>)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='pytorch under torchrun: the images are shared between processes, the result is the same')


def run(args: argparse.Namespace) -> None:
    from mmengine.dist import is_main_process

    from ..files import check_writable, save_checkpoint
    from ..openmmlab.checkpoints import check_checkpoint
    from ..openmmlab.preflight import check_of_ann
    from ..openmmlab.scripts import load_calibrated
    check_checkpoint(args.checkpoint)
    check_of_ann(args.checkpoint)
    check_writable(args.out, args.config, args.checkpoint)
    runner, model, meta = load_calibrated(args.config, args.checkpoint, args.cfg_options, args.work_dir, args.launcher)
    if is_main_process():
        save_checkpoint(model, args.out, meta=meta)
        runner.logger.info(f'saved {args.out}')
