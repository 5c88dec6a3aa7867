"""What a detector and its spiking network detect on an image, side by side."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from torch import nn

SCORE = .3  # detections with at least this score are drawn


def draw_comparison(model: nn.Module, cfg: Config, classes: Sequence[str], image: str | Path, path: str | Path,
                    score: float = SCORE) -> dict[str, int]:
    """Detect on an image with the ANN and with the calibrated spiking network, and draw both beside each other.

    Args:
        model: detector with a spiking part, in evaluation mode.
        cfg: the config that it was built from; its test pipeline prepares the image.
        classes: names of the classes.
        image: image file.
        path: picture to write.
        score: least score of a detection.

    Returns:
        How many detections of at least this score are drawn, by the title of each picture.
    """
    import mmcv
    from mmdet.apis import inference_detector

    from ..analysis.plots import plot_pictures
    from ..openmmlab.wrapper import spiking_parts
    parts = list(spiking_parts(model).values())
    model.cfg = cfg  # what inference_detector reads the test pipeline from
    pixels = mmcv.imread(str(image), channel_order='rgb')
    pictures, counts = {}, {}
    try:
        for title, runs_as in (('ANN', 'ann'), (f'SNN, T = {parts[0].snn.time_steps}', 'snn')):
            for part in parts:
                part.runs_as = runs_as
            prediction = inference_detector(model, str(image))
            counts[title] = int((prediction.pred_instances.scores >= score).sum())
            pictures[title] = draw_detections(pixels, prediction, classes, score)
    finally:
        for part in parts:
            part.runs_as = 'snn'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plot_pictures({'': pictures}, path)
    return counts


def draw_detections(image: np.ndarray, prediction, classes: Sequence[str], score: float) -> np.ndarray:
    """Draw the detections of a ``DetDataSample`` that have at least a score onto an RGB image, (H, W, 3) uint8."""
    from mmdet.visualization import DetLocalVisualizer
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=tuple(classes))
    visualizer.add_datasample('image', image, prediction, draw_gt=False, pred_score_thr=score)
    return visualizer.get_image()
