"""Calibrate a spiking model offline: ``python tools/calibrate.py CONFIG ANN_CHECKPOINT -o OUT.pth``.

The config is that of the spiking model, with mmsnn.SpikingBackbone and mmsnn.CalibrationHook. The result tests
without calibrating again (``tools/test.py CONFIG OUT.pth``) and loads with mmdet's
``init_detector(CONFIG, 'OUT.pth')``.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmengine.config import DictAction
from mmengine.dist import is_main_process

from mmsnn.files import save_checkpoint
from mmsnn.openmmlab.checks import CheckpointError, ConfigError
from mmsnn.openmmlab.scripts import check_checkpoint, check_writable, load_calibrated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the spiking model')
    parser.add_argument('checkpoint', help='checkpoint of the ANN')
    parser.add_argument('-o', '--out', required=True, type=Path, help='calibrated checkpoint to write')
    parser.add_argument('--work-dir', help='where the log goes (default: work_dirs/<config name>)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='override settings of the config, such as model.backbone.time_steps=16')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='pytorch under torchrun: the images are shared between processes, the result is the same')
    args = parser.parse_args()

    if args.out.exists() and args.out.is_dir():
        parser.error(f'--out {args.out} is a folder; name the file to write')
    check_checkpoint(args.checkpoint)
    check_writable(args.out)
    try:
        runner, model, meta = load_calibrated(args.config, args.checkpoint, args.cfg_options, args.work_dir,
                                              args.launcher, anew=True)
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    if is_main_process():
        save_checkpoint(model, args.out, meta=meta)
        runner.logger.info(f'saved {args.out}')


if __name__ == '__main__':
    main()
