"""What a detector and its spiking network detect on an image, side by side."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

SCORE = .3  # detections with at least this score are drawn
WIDTH = 480  # pixels that a picture has at least when detections are drawn: text has a fixed size


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
    plot_pictures({'': pictures}, path, width=5)
    return counts


def draw_detections(image: np.ndarray, prediction, classes: Sequence[str], score: float) -> np.ndarray:
    """Draw the detections of a ``DetDataSample`` that have at least a score onto an RGB image, (H, W, 3) uint8.

    Small images are enlarged, so that the text leaves something of them to be seen.
    """
    import mmcv
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.structures import InstanceData
    found = prediction.pred_instances.cpu()
    if 'masks' not in found and image.shape[1] < WIDTH:
        scale = WIDTH / image.shape[1]
        image = mmcv.imrescale(image, scale, interpolation='bicubic')
        boxes = (found.bboxes * scale).clamp(min=0).minimum(torch.tensor([image.shape[1], image.shape[0]] * 2) - 1)
        found = InstanceData(bboxes=boxes, labels=found.labels, scores=found.scores)
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=tuple(classes))
    visualizer.add_datasample('image', image, DetDataSample(pred_instances=found), draw_gt=False,
                              pred_score_thr=score)
    return visualizer.get_image()
