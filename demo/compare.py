"""Detect on an image with a detector and with its spiking network, and draw both side by side.

    python demo/compare.py IMAGE CONFIG CKPT --out compare.png --cfg-options model.backbone.time_steps=8

CONFIG is that of the spiking detector; CKPT a checkpoint of its ANN, which is calibrated as CONFIG's CalibrationHook
says, or one that ``tools/calibrate.py`` wrote. demo/tutorial.ipynb does the same step by step.
"""
import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / folder) for folder in ('', 'tools')]

from mmengine.config import DictAction

from mmsnn.experiments.comparison import SCORE, draw_comparison
from mmsnn.openmmlab.scripts import load_calibrated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', type=Path)
    parser.add_argument('config', help='config of the spiking detector')
    parser.add_argument('checkpoint', help='of the ANN, or calibrated')
    parser.add_argument('--out', type=Path, default=Path('compare.png'), help='picture to write (default: %(default)s)')
    parser.add_argument('--score', type=float, default=SCORE, help='least score of a detection (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    args = parser.parse_args()
    if not args.image.is_file():
        parser.error(f'image {args.image} does not exist')
    runner, model, _ = load_calibrated(args.config, args.checkpoint, args.cfg_options)
    model.eval()
    classes = runner.test_dataloader.dataset.metainfo['classes']
    for title, count in draw_comparison(model, runner.cfg, classes, args.image, args.out, args.score).items():
        runner.logger.info(f'{title}: {count} detections')
    runner.logger.info(f'saved {args.out}')


if __name__ == '__main__':
    main()
