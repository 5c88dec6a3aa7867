"""How far a score depends on which images it was measured on: the delete-a-group jackknife."""
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.evaluator import BaseMetric

GROUPS = 20  # of test images, at most; images with neighbouring numbers are in different ones


def scores_without(metric: 'BaseMetric', results: Sequence[Any], key: str) -> list[float]:
    """The score on all test images but those of a group, for each group.

    Args:
        metric: whose results these are.
        results: of each image, as ``metric.process`` stores them.
        key: of the score, without the metric's prefix.

    Returns:
        At most GROUPS scores; none where there is a single image, or the metric does not keep a result for each.
    """
    count = min(GROUPS, len(results))
    if count < 2:
        return []
    scores, before = [], getattr(metric, 'img_ids', None)
    try:
        for group in range(count):
            kept = [result for index, result in enumerate(results) if index % count != group]
            if hasattr(metric, 'img_ids'):  # of CocoMetric; images that were left out would count as missed
                metric.img_ids = [result[0]['img_id'] for result in kept]
            scores.append(float(metric.compute_metrics(kept).get(key, 0.)))
    finally:
        if hasattr(metric, 'img_ids'):
            metric.img_ids = before
    return scores


def standard_error(scores: Sequence[float]) -> float:
    """The standard error of a score over all images, from those of :func:`scores_without` [Shao and Wu 1989].

    Two of them to either side are an interval of about 95 %. For a mean over K images, left out one by one, this is
    the standard deviation of the images by the root of K.
    """
    mean = sum(scores) / len(scores)
    return math.sqrt((len(scores) - 1) / len(scores) * sum((score - mean) ** 2 for score in scores))
