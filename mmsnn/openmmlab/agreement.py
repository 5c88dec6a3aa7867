"""How far a spiking model agrees with its own ANN: a metric that needs no annotations."""
import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import Tensor, nn

from .registry import METRICS
from .wrapper import SpikingWrapper


@METRICS.register_module()
class AgreementMetric(BaseMetric):
    """Judges a spiking model by its own ANN, which predicts on the same images.

    A classifier's result is ``top1``, the share in % of images for which both name the same class. A detector's are
    those of mmdet's CocoMetric (``bbox_mAP``, ...) with the ANN's detections as ground truth: 1 where both detect the
    same, 0 where the spiking model finds nothing, and COCO's mark for undefined, -1, where the ANN finds nothing on
    any image.

    :class:`mmsnn.CalibrationHook` tells it which model is tested. On the test set the ANN costs about one time step.

    Args:
        score_threshold: the ANN's detections with at least this score count as objects.
        **kwargs: of :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'agreement'

    def __init__(self, score_threshold: float = .3, **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= score_threshold <= 1:
            raise ValueError(f'score_threshold must be from 0 to 1, not {score_threshold}')
        self.score_threshold = score_threshold
        self._model: nn.Module | None = None
        self._metrics: list[BaseMetric] = []

    def watch(self, model: nn.Module, metrics: Sequence[BaseMetric] = ()) -> None:
        """Compare with the ANN in ``model`` from now on; :class:`mmsnn.CalibrationHook` calls this.

        Args:
            model: with spiking parts.
            metrics: are given what the ANN predicts, to judge it by.
        """
        self._model = model
        self._metrics = list(metrics)

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Compare the spiking model's predictions with those of its ANN on the same batch.

        Raises:
            RuntimeError: no model is being watched.
            ValueError: it predicts neither classes nor boxes.
        """
        if self._model is None:
            raise RuntimeError('AgreementMetric watches no model: add mmsnn.CalibrationHook to custom_hooks, or call '
                               'watch(model) before the test')
        references = [sample.to_dict() for sample in ann_predictions(self._model, data_batch)]
        for metric in self._metrics:
            metric.process(data_batch, references)
        if 'labels' in references[0].get('pred_instances', ()):
            self._compare_detections(data_samples, references)
        elif not {'pred_label', 'pred_score'} & references[0].keys():
            raise ValueError('AgreementMetric compares classes, or boxes with classes, and the model predicts '
                             f'{", ".join(key for key in references[0] if key.startswith("pred"))}: leave it out')
        else:
            self.results += [bool(torch.equal(predicted_class(sample), predicted_class(reference)))
                             for sample, reference in zip(data_samples, references, strict=True)]

    def _compare_detections(self, samples: list[dict], references: list[dict]) -> None:
        from mmdet.evaluation import CocoMetric
        coco = CocoMetric(metric='bbox')
        for sample, reference in zip(samples, references, strict=True):
            found = reference['pred_instances']
            kept = found['scores'] >= self.score_threshold
            objects = [dict(bbox=box, bbox_label=label) for box, label in zip(
                found['bboxes'][kept].tolist(), found['labels'][kept].tolist())]
            boxes = {key: sample['pred_instances'][key] for key in ('bboxes', 'scores', 'labels')}
            coco.process({}, [dict(sample, pred_instances=boxes, instances=objects)])
        self.results += coco.results

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Agreement over all images of all processes."""
        if not results or isinstance(results[0], bool):
            return OrderedDict(top1=100. * sum(results) / max(len(results), 1))
        from mmdet.evaluation import CocoMetric
        coco = CocoMetric(metric='bbox')  # a new one each time: it keeps the first ground truth that it has seen
        coco.dataset_meta = self.dataset_meta
        metrics = coco.compute_metrics(results)
        if metrics:
            return metrics
        # Where nothing at all was detected CocoMetric has no result.
        objects = any(reference['anns'] for reference, _ in results)
        return OrderedDict((f'bbox_{item}', 0. if objects else -1.) for item in ('mAP', 'mAP_50', 'mAP_75'))


def ann_predictions(model: BaseModel, data_batch: dict) -> list:
    """What ``model`` predicts for a batch with the ANN in the place of every spiking part."""
    parts = [module for module in model.modules() if isinstance(module, SpikingWrapper)]
    before = [part.runs_as for part in parts]
    for part in parts:
        part.runs_as = 'ann'
    try:
        # The samples in the batch are those that the spiking model's predictions were written to.
        return model.test_step(copy.deepcopy(data_batch))
    finally:
        for part, value in zip(parts, before):
            part.runs_as = value


def predicted_class(sample: dict) -> Tensor:
    return sample['pred_label'] if 'pred_label' in sample else sample['pred_score'].argmax(-1, keepdim=True)
