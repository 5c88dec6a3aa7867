"""Make calibration images from a network's own statistics, where no training images are at hand.

    mmsnn synthesise my_detector_spiking.py my_detector.pth -o images.pth --size 320 480

Section 5.7 of the paper. Give the result to the calibration as ``CalibrationHook(images='images.pth')``, or to
``mmsnn.calibrate``, which takes the list of batches in it.
"""
import argparse

from .arguments import add_model, add_out, add_size, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_out(parser, 'file to write')
    add_size(parser, required=True, help='of the images')
    parser.add_argument('--num-images', type=positive, default=256, metavar='N', help='default: %(default)s')
    parser.add_argument('--batch-size', type=positive, default=64, metavar='N', help='default: %(default)s')
    parser.add_argument('--iterations', type=positive, default=500, metavar='N',
                        help='gradient steps for each batch (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='default: %(default)s')


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from mmengine.runner import Runner

    from ..calibration.synthesis import synthesise
    from ..files import check_writable, write_file
    from ..openmmlab.checkpoints import check_checkpoint
    from ..openmmlab.preflight import check_of_ann
    from ..openmmlab.scripts import only_part, read_config
    check_checkpoint(args.checkpoint)
    check_of_ann(args.checkpoint)
    check_writable(args.out, args.config, args.checkpoint)
    cfg = read_config(args.config, args.cfg_options)
    cfg.work_dir = cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(args.checkpoint)
    batches = synthesise(only_part(runner.model).ann, args.num_images, tuple(args.size), batch_size=args.batch_size,
                         iterations=args.iterations, seed=args.seed)
    write_file([batch.cpu() for batch in batches], args.out)
    runner.logger.info(f'saved {sum(map(len, batches))} images to {args.out}')
