"""What a detector and its spiking network detect on an image, side by side."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from torch import nn

from .drawing import draw_detections, verdicts

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
        How many detections of at least this score are drawn, by the title of each picture. The spiking network's are
        right or wrong by the ANN's, which are what it should find.
    """
    import mmcv
    from mmdet.apis import inference_detector

    from ..analysis.plots import plot_pictures
    from ..openmmlab.wrapper import spiking_parts
    parts = list(spiking_parts(model).values())
    settings = parts[0].snn.settings or {}
    steps = parts[0].snn.time_steps
    model.cfg = cfg  # what inference_detector reads the test pipeline from
    pixels = mmcv.imread(str(image), channel_order='rgb')
    pictures, counts, reference, caption = {}, {}, None, ''
    try:
        for title, runs_as in (('ANN', 'ann'), (f'SNN, T = {steps}', 'snn')):
            for part in parts:
                part.runs_as = runs_as
            found = detections(inference_detector(model, str(image)), score)
            counts[title] = len(found['labels'])
            heading = f'{title}: {counts[title]} detections'
            pictures[heading] = draw_detections(pixels, found, reference, classes)
            if reference is not None:
                right, missed = verdicts(found, reference)
                caption = (f'pipeline {settings.get("pipeline", "?")}, T = {steps}, scores of {score:g} or more, in %\n'
                           f'{sum(right)} of the ANN\'s {counts["ANN"]} detections found again (green), '
                           f'{sum(missed)} missed (dashed), {len(right) - sum(right)} others (red)')
            reference = found
    finally:
        for part in parts:
            part.runs_as = 'snn'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plot_pictures({'': pictures}, path, width=7, caption=caption)
    return counts


def detections(prediction, score: float) -> dict:
    """Boxes, classes, scores and perhaps masks of a ``DetDataSample`` that have at least a score, as plain data."""
    kept = prediction.pred_instances[prediction.pred_instances.scores >= score].cpu()
    found = {key: kept[key].tolist() for key in ('bboxes', 'labels', 'scores')}
    return found | ({'masks': np.asarray(kept.masks, bool)} if 'masks' in kept else {})
