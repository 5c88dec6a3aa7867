"""Calibration as part of a test run."""
import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..calibration.procedure import CalibrationReport
from ..calibration.store import GIBI
from ..distributed import own
from ..neurons.pipelines import differences, make_pipeline, usual_pipeline
from ..progress import passed_on, progress_bar
from .agreement import AgreementMetric
from .backbone import SpikingBackbone
from .checks import NO_AVERAGES, RUNNING, check_choices, check_fits, check_images, check_settings, image_differences
from .classifier import SpikingClassifier
from .closing import sum_up, twins
from .detector import SpikingDetector
from .images import data_set, find_pipeline, image_source, prepared, replace_pipeline, test_pipeline, training_set
from .metrics import SpikeMetric
from .registry import HOOKS
from .wrapper import SpikingWrapper, find_parts, spiking_parts

__all__ = ['CalibrationHook', 'calibration_hook', 'find_pipeline', 'plain_config', 'replace_pipeline', 'test_pipeline']


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Calibrates the model's spiking backbone, or the spiking classifier, on training images before a test run starts.

    Nothing happens when the checkpoint already holds a calibrated network, provided it was calibrated with the same
    pipeline and options. Other images than the config names are worth a warning only: they estimate the same. Images
    come from the training data set, drawn at random with ``seed`` and prepared by the *test* pipeline.

    The runner's visualizer (TensorBoard, for example) gets scalars of each layer of neurons, with the layer's number as
    the step: ``calibration/<part>/threshold``, ``error_before`` and ``error_after``, and after a test with SpikeMetric
    ``spike/firing_rate`` and ``spike/synaptic_operations``.

    Attributes:
        reports: what the last calibration did, for each spiking part of the model.

    Args:
        pipeline: a name in :data:`mmsnn.PIPELINES`, or None for what is usual at this T; see :func:`mmsnn.calibrate`.
        num_images: how many training images.
        batch_size: images per calibration batch. With 1, the default, no image is padded to another's size.
        dataset: config of the data set to draw from, without a pipeline or with its own; by default that of
            ``train_dataloader``.
        images: file of preprocessed batches, from ``tools/synthesise.py``, to calibrate on instead of a data set.
        seed: of the choice of images, and of the order in which weights calibration draws them.
        memory_gb: memory for stored activations and spikes in GiB; more goes to temporary files.
        **options: replace single choices of the pipeline; see :class:`mmsnn.Pipeline`.
    """

    priority = 'VERY_LOW'

    def __init__(self, pipeline: str | None = None, num_images: int = 32, batch_size: int = 1,
                 dataset: dict | None = None, images: str | None = None, seed: int = 0, memory_gb: float = 8.,
                 **options) -> None:
        check_images(num_images, batch_size, dataset, images)
        self.pipeline = pipeline
        self.num_images = num_images
        self.batch_size = batch_size
        self.dataset = dataset
        self.images = images
        self.seed = seed
        self.memory_gb = memory_gb
        self.options = options
        check_choices(pipeline, options)
        self._logging = ExitStack()
        self.reports: dict[str, CalibrationReport] = {}
        self._calibrated = 0., 0.  # when, and how many seconds it took
        self._of_ann: list[BaseMetric] = []

    def before_run(self, runner: Runner) -> None:
        for name, part in find_parts(unwrapped(runner.model)).items():
            runner.logger.info(f'mmsnn: {name} ({type(part.ann).__name__}, {len(part.snn.neurons)} layers of neurons) '
                               f'spikes for T = {part.snn.time_steps} steps; '
                               f'{self.plan(runner.cfg, part.snn.time_steps, part.snn.converted_for)}')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = unwrapped(runner.model)
        if find_parts(model):
            check_fits(model, checkpoint.get('state_dict', checkpoint))

    def before_test(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise RuntimeError(NO_AVERAGES)
        started = time.monotonic()
        self.calibrate(model, runner.cfg, runner.logger)
        self._calibrated = time.monotonic(), time.monotonic() - started
        for part in spiking_parts(model).values():
            part.snn.expect(len(runner.test_dataloader))
        self._logging.enter_context(passed_on(runner.logger))
        metrics = runner.test_loop.evaluator.metrics
        own = [metric for metric in metrics if isinstance(metric, (SpikeMetric, AgreementMetric))]
        # AgreementMetric runs the ANN, which then gets a score of its own.
        self._of_ann = twins(metric for metric in metrics if metric not in own) if any(
            isinstance(metric, AgreementMetric) for metric in own) else []
        for metric in own:
            metric.watch(model, *[self._of_ann] * isinstance(metric, AgreementMetric))
        for name, report in self.reports.items():
            for number, layer in enumerate(report):
                scalars = dict(threshold=layer.threshold, error_before=layer.error_before,
                               error_after=layer.error_after)
                runner.visualizer.add_scalars({f'calibration/{name}/{key}': value for key, value in scalars.items()
                                               if value is not None}, step=number)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        for metric in runner.test_loop.evaluator.metrics:
            if isinstance(metric, SpikeMetric):
                for number, layer in enumerate(metric.layers.values()):
                    runner.visualizer.add_scalars(
                        {f'{metric.prefix}/{key}': value for key, value in layer.items()}, step=number)

        calibrated, seconds = self._calibrated
        sum_up(runner, spiking_parts(unwrapped(runner.model)), self.reports, metrics or {}, self._of_ann,
               (seconds, time.monotonic() - calibrated))

    def after_test(self, runner: Runner) -> None:
        self._logging.close()

    def named(self, time_steps: int, coding: str = 'rate') -> str:
        """The pipeline for T steps of a network that was converted for this coding."""
        return self.pipeline or usual_pipeline(time_steps, self.options.get('levels'), coding)

    def method(self, time_steps: int, coding: str = 'rate') -> str:
        """The pipeline by name for T steps, and how its choices differ from that pipeline's own."""
        name = self.named(time_steps, coding)
        changed = differences(name, make_pipeline(name, **self.choices()))
        return f'pipeline {name!r}' + ''.join(f', {key}={value!r}' for key, value in changed.items())

    def plan(self, cfg: Config, time_steps: int, coding: str = 'rate') -> str:
        """What the hook will do where the checkpoint is not calibrated."""
        return f'{self.method(time_steps, coding)}; calibration images: {self.num_images} of {self.source(cfg)}'

    def choices(self) -> dict:
        """What the options say about the calibration itself, seed included."""
        return {'seed': self.seed} | {key: value for key, value in self.options.items() if key not in RUNNING}

    def source(self, cfg: Config) -> str:
        """Where the calibration images come from."""
        if self.images is not None:
            return Path(self.images).name
        dataset = self.dataset or training_set(cfg)
        return 'no data set' if dataset is None else image_source(dataset)

    def calibrate(self, model: BaseModel, cfg: Config, logger: MMLogger) -> None:
        """Calibrate every spiking part of ``model`` on images that ``cfg`` describes.

        Raises:
            RuntimeError: there is none, or its checkpoint was calibrated with another pipeline or other options.
        """
        images = dict(number=self.num_images, source=self.source(cfg), seed=self.seed, batch_size=self.batch_size)
        todo = {}
        for name, wrapper in spiking_parts(model).items():
            settings = wrapper.snn.settings
            if settings is None:
                todo[name] = wrapper
                continue
            check_settings(name, settings, self.pipeline, self.choices())
            others = image_differences(settings.get('images') or {}, images)
            if others:
                logger.warning(f"the checkpoint's {name} was calibrated on other images than the config names: "
                               f'{", ".join(others)}')
            logger.info(f'{name}: using the calibration of the checkpoint ({settings})')
        if not todo:
            return
        training = model.training
        model.train(False)
        try:
            with passed_on(logger):
                batches = list(self.batches(model, cfg))
                self.calibrate_parts(todo, batches, logger, **self.options)
        finally:
            model.train(training)
        for wrapper in todo.values():
            wrapper.snn.settings = dict(wrapper.snn.settings or {}, images=images)

    def calibrate_parts(self, parts: dict[str, SpikingWrapper], batches: list[Tensor], logger: MMLogger,
                        **options) -> None:
        """Calibrate the given spiking parts of a model; ``options`` are those of :func:`mmsnn.calibrate`."""
        options = dict(seed=self.seed, progress=is_main_process(), memory_budget=int(self.memory_gb * GIBI)) | options
        for name, part in parts.items():
            logger.info(f'calibrating {name}: {self.method(part.snn.time_steps, part.snn.converted_for)}, '
                        f'T = {part.snn.time_steps}, '
                        f'{sum(map(len, batches))} images')
            self.reports[name] = part.calibrate(part.inputs(batches), self.pipeline, **options)
            logger.info(f"{name}, calibrated (errors: squared, relative to the ANN's squared activations; 1 is that of "
                        f'a layer that never fires):\n{self.reports[name]}')

    def batches(self, model: BaseModel, cfg: Config) -> Iterator[Tensor]:
        """Yield this process's share of preprocessed image batches (N, 3, H, W), each at its own size.

        Raises:
            ValueError: there is no data set, or it has fewer images than asked for.
        """
        if self.images is not None:
            yield from self._stored_batches(self.images, model)
            return
        dataset = DATASETS.build(data_set(cfg, self.dataset))
        if len(dataset) < self.num_images:
            raise ValueError(f'calibration asks for {self.num_images} images, but its data set has {len(dataset)}: '
                             'lower num_images')
        indices = np.random.default_rng(self.seed).permutation(len(dataset))[:self.num_images].tolist()
        starts = own(range(0, len(indices), self.batch_size))
        if not starts:
            raise ValueError(f'{self.num_images} calibration images in batches of {self.batch_size} are too few for '
                             f'{get_world_size()} processes: each needs one batch. Lower batch_size')
        show = self.options.get('progress', is_main_process())
        for start in progress_bar(starts, 'loading images', unit='batch', disable=not show):
            samples = [prepared(dataset, index) for index in indices[start:start + self.batch_size]]
            with torch.no_grad():
                yield model.data_preprocessor(pseudo_collate(samples), False)['inputs']

    def _stored_batches(self, path: str, model: nn.Module) -> Sequence[Tensor]:
        """The first ``num_images`` of the images in a file, in batches of ``batch_size``."""
        device = next(model.parameters()).device
        try:
            images = torch.cat(torch.load(path, map_location=device, weights_only=True))
        except Exception as error:  # whatever a damaged file makes of the formats that torch tries
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f'{path} holds no batches of images as tools/synthesise.py writes them '
                             f'({reason})') from error
        if len(images) < self.num_images:
            raise ValueError(f'calibration asks for {self.num_images} images, but {path} has {len(images)}: '
                             'lower num_images')
        return own(images[:self.num_images].split(self.batch_size))


def unwrapped(model: nn.Module) -> BaseModel:
    """The model within what distributes it."""
    return model.module if is_model_wrapper(model) else model


def spellings(*classes: type) -> tuple:
    """How configs may name a class: as registered, as itself (in pure Python), or by its path (when dumped)."""
    return tuple(spelling for kind in classes for spelling in (
        f'mmsnn.{kind.__name__}', kind, f'{kind.__module__}.{kind.__name__}'))


# Where a wrapper has its ANN.
WRAPPED = dict.fromkeys(spellings(SpikingBackbone), 'backbone') | dict.fromkeys(
    spellings(SpikingClassifier), 'classifier') | dict.fromkeys(spellings(SpikingDetector), 'detector')
HOOK_TYPES = spellings(CalibrationHook)
METRIC_TYPES = spellings(SpikeMetric, AgreementMetric)  # of spiking models only


def plain_config(cfg: Config) -> Config:
    """The ANN's config from a spiking model's: without wrappers, calibration, and metrics of spiking models only."""
    def unwrap(value):
        if isinstance(value, dict):
            inner = WRAPPED.get(value.get('type'))
            return unwrap(value[inner]) if inner else ConfigDict({key: unwrap(item) for key, item in value.items()})
        return [unwrap(item) for item in value] if isinstance(value, list) else value

    plain = copy.deepcopy(cfg)
    plain.model = unwrap(cfg.model)
    plain.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] not in HOOK_TYPES]
    if cfg.get('test_evaluator'):
        metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
        plain.test_evaluator = [metric for metric in metrics if metric.get('type') not in METRIC_TYPES]
    return plain


def calibration_hook(cfg: Config) -> CalibrationHook:
    """Build the CalibrationHook that a config names in ``custom_hooks``.

    Raises:
        ValueError: it names none.
    """
    for hook in cfg.get('custom_hooks') or []:
        if hook['type'] in HOOK_TYPES:
            return HOOKS.build(hook)
    raise ValueError(f"{cfg.filename} has no CalibrationHook; add custom_hooks = [dict(type='mmsnn.CalibrationHook', "
                     "num_images=32)]")
