"""Detect on an image with a detector and with its spiking network, and draw both side by side.

    python demo/compare.py IMAGE CONFIG CKPT --out compare.png --cfg-options model.backbone.time_steps=8

CONFIG is that of the spiking detector; CKPT a checkpoint of its ANN, which is calibrated as CONFIG's CalibrationHook
says, or one that ``tools/calibrate.py`` wrote. demo/tutorial.ipynb does the same step by step.
"""
import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / folder) for folder in ('', 'tools')]

import mmcv
import numpy as np
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import DictAction

from mmsnn.analysis.plots import plot_pictures
from mmsnn.openmmlab.scripts import load_calibrated
from mmsnn.openmmlab.wrapper import spiking_parts


def draw(image: np.ndarray, prediction: DetDataSample, classes: tuple[str, ...], score: float) -> np.ndarray:
    """Draw detections with at least a score onto an RGB image, (H, W, 3) uint8."""
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=classes)
    visualizer.add_datasample('image', image, prediction, draw_gt=False, pred_score_thr=score)
    return visualizer.get_image()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', type=Path)
    parser.add_argument('config', help='config of the spiking detector')
    parser.add_argument('checkpoint', help='of the ANN, or calibrated')
    parser.add_argument('--out', type=Path, default=Path('compare.png'), help='picture to write (default: %(default)s)')
    parser.add_argument('--score', type=float, default=.3, help='least score of a detection (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    args = parser.parse_args()
    if not args.image.is_file():
        parser.error(f'image {args.image} does not exist')
    runner, model, _ = load_calibrated(args.config, args.checkpoint, args.cfg_options)
    model.eval()
    model.cfg = runner.cfg  # what inference_detector reads the test pipeline from
    (part,) = spiking_parts(model).values()
    image = mmcv.imread(str(args.image), channel_order='rgb')
    pictures = {}
    for title, runs_as in (('ANN', 'ann'), (f'SNN, T = {part.snn.time_steps}', 'snn')):
        part.runs_as = runs_as
        prediction = inference_detector(model, str(args.image))
        found = prediction.pred_instances
        runner.logger.info(f'{title}: {int((found.scores >= args.score).sum())} detections')
        pictures[title] = draw(image, prediction, runner.test_dataloader.dataset.metainfo['classes'], args.score)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot_pictures({'': pictures}, args.out)
    runner.logger.info(f'saved {args.out}')


if __name__ == '__main__':
    main()
