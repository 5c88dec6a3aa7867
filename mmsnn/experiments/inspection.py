"""What a report shows beyond a score: errors, rates and memory by layer, and predictions on some images."""
import json
from pathlib import Path

import torch
from mmengine.hooks import Hook

from .intervals import scores_without
from .methods import job_options, parse_pipeline
from .runs import AXES, Worker, shown_metric, test

ERROR_IMAGES = 32  # calibration images that errors are measured on, at most
SCORE = .3  # detections with at least this score are shown
TOP = 3  # classes shown of a classifier
SHOWN = dict(mmpretrain=8)  # test images, evenly spaced over the test set; of detectors 3


class Kept(Hook):
    """Keeps what the metrics have of each image, which they forget when they are evaluated."""

    results: list[list]

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if batch_idx + 1 == len(runner.test_dataloader):
            self.results = [list(metric.results) for metric in runner.test_loop.evaluator.metrics]


class Inspector(Worker):
    """A worker whose rows also hold what the report draws, for the first seed: plain numbers."""

    _errors: dict[str, dict] = {}

    def test(self, runner) -> dict:
        if not any(isinstance(hook, Kept) for hook in runner.hooks):
            runner.register_hook(Kept())
        self._metrics = test(runner)
        return self._metrics

    def details(self, runner, job: dict | None) -> dict:
        if job is None:
            dataset = runner.test_dataloader.dataset
            predictions = self.predictions(runner)
            return dict(predictions=predictions, classes=class_names(dataset, predictions[0].get('classes', 0)),
                        truth=[truth(dataset, index) for index in shown_images(runner)], tested=len(dataset),
                        scores_without=self.scores_without(runner), **self.thresholds())
        if job['seed'] != 0:
            return {}
        return dict(predictions=self.predictions(runner), scores_without=self.scores_without(runner),
                    **self.layers(job))

    def scores_without(self, runner) -> list[float]:
        """The score that the report shows, without each group of test images; see :mod:`.intervals`."""
        prefix, _, key = shown_metric(dict(dict.fromkeys(AXES), **self._metrics)).partition('/')
        (kept,) = (hook for hook in runner.hooks if isinstance(hook, Kept))
        for metric, results in zip(runner.test_loop.evaluator.metrics, kept.results):
            if metric.prefix == prefix and len(results) == len(runner.test_dataloader.dataset):
                return scores_without(metric, results, key)
        return []

    def thresholds(self) -> dict:
        """Thresholds of the ANN's layers against T, by the rule of the config's pipeline where it needs no spikes."""
        from mmsnn.analysis.errors import threshold_shares
        from mmsnn.neurons.pipelines import make_pipeline
        name, options = self.own
        pipeline = make_pipeline(name, **options)
        if pipeline.threshold in ('current', 'balanced'):
            return {}
        _, histograms = self.calibration_data()
        steps = [2 ** power for power in range(9)]
        return dict(threshold_shares=threshold_shares(histograms, pipeline, steps), threshold_steps=steps,
                    threshold_rule=dict(pipeline=name, threshold=pipeline.threshold,
                                        max_rate=pipeline.max_rate))

    def layers(self, job: dict) -> dict:
        """Errors before and after calibration, thresholds, firing rates and memory of the network just tested.

        Of a detector with several spiking parts these are of the first; ``parts`` has the operations of all.
        """
        from mmsnn.analysis.errors import box, parameter_bytes
        from mmsnn.openmmlab.metrics import SpikeMetric
        from mmsnn.openmmlab.wrapper import spiking_parts
        runner, hook, part = self.spiking_runner()
        batches, histograms = self.calibration_data()
        images, chosen = 0, []
        for batch in batches:
            if images < ERROR_IMAGES:
                chosen.append(batch[:ERROR_IMAGES - images])
                images += len(chosen[-1])
        ann = part.converted().network
        before = self.errors(self.uncalibrated(job), ann, chosen, reuse=True)
        after = self.errors(part.snn, ann, chosen)
        metric = next(m for m in runner.test_loop.evaluator.metrics if isinstance(m, SpikeMetric))
        layers = [dict(name=name, threshold=float(neuron.threshold.mean()), **metric.layers[name],
                       before=box(before[name]), after=box(after[name])) for name, neuron in part.snn.neurons.items()]
        return dict(layers=layers, error_images=images, memory=parameter_bytes(part.snn, ann),
                    settings=part.snn.settings, parts=metric.parts, spiking=list(spiking_parts(runner.model)))

    def uncalibrated(self, job: dict):
        """The job's network with its thresholds and neurons, but nothing calibrated."""
        import mmsnn
        _, _, part = self.spiking_runner()
        batches, histograms = self.calibration_data()
        snn = part.converted()
        options = {**job_options(job, self.own), **dict(bias=False, potential=None, weights=False)}
        mmsnn.calibrate(snn, batches, parse_pipeline(job['pipeline'])[0], histograms=histograms, progress=False,
                        **options)
        return snn

    def errors(self, snn, ann, batches: list, reuse: bool = False) -> dict:
        """Errors by channel; ``reuse`` those of another pipeline that starts from the same network."""
        from mmsnn.analysis.errors import channel_errors
        settings = {key: value for key, value in snn.settings.items() if key != 'pipeline'}
        key = json.dumps(settings, sort_keys=True)
        if reuse and key in self._errors:
            return self._errors[key]
        found = channel_errors(snn, ann, batches)
        if reuse:
            self._errors = {key: found}
        return found

    def predictions(self, runner) -> list[dict]:
        """What the model predicts for the images shown, and the pictures themselves, written once."""
        from mmengine.dataset import pseudo_collate
        dataset = runner.test_dataloader.dataset
        found = []
        for number, index in enumerate(shown_images(runner)):
            data = pseudo_collate([dataset[index]])
            picture = Path(self.work_dir, 'images', f'{number}.png')
            if not picture.is_file():
                write_picture(data, picture)
            with torch.no_grad():
                (sample,) = runner.model.test_step(data)
            found.append(dict(index=index, **(
                detections(sample) if 'pred_instances' in sample else classes(sample))))
        return found


def shown_images(runner) -> list[int]:
    """The numbers of the test images that are shown."""
    dataset = runner.test_dataloader.dataset
    count = min(SHOWN.get(runner.cfg.default_scope, 3), len(dataset))
    return [number * len(dataset) // count for number in range(count)]


def class_names(dataset, count: int) -> list[str]:
    """The names of the classes, or their numbers where the data set has no names for so many."""
    return list(getattr(dataset, 'metainfo', {}).get('classes') or map(str, range(count)))


def truth(dataset, index: int) -> dict | None:
    """Boxes (left, top, right, bottom; pixels) and classes that an image is annotated with, or None where it is not."""
    instances = dataset.get_data_info(index).get('instances') if hasattr(dataset, 'get_data_info') else None
    if instances is None:
        return None
    instances = [instance for instance in instances if not instance.get('ignore_flag')]
    return dict(bboxes=[list(map(float, instance['bbox'])) for instance in instances],
                labels=[int(instance['bbox_label']) for instance in instances])


def detections(sample) -> dict:
    """Boxes (left, top, right, bottom; pixels), classes and scores of a detector's prediction."""
    kept = sample.pred_instances[sample.pred_instances.scores >= SCORE]
    return {key: kept[key].tolist() for key in ('bboxes', 'labels', 'scores')}


def classes(sample) -> dict:
    """The most probable classes, the true one where the data set has it, and how many there are."""
    scores, labels = sample.pred_score.topk(min(TOP, len(sample.pred_score)))
    truth = sample.gt_label.tolist() if 'gt_label' in sample else []
    return dict(scores=scores.tolist(), labels=labels.tolist(), truth=truth, classes=len(sample.pred_score))


def write_picture(data: dict, path: Path) -> None:
    """Write the image of a sample as the data set has it, or, where it has no file of its own, as the model gets it."""
    import mmcv
    source = data['data_samples'][0].get('img_path')
    image = mmcv.imread(source) if source else data['inputs'][0].permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    mmcv.imwrite(image, str(path))


def inspect(worker: tuple, job: dict) -> dict:
    """Run one job in a worker process and return its row."""
    return dict(job, **Inspector.get(*worker).run(job))
