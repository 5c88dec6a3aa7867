"""What is refused before a test or a calibration: wrong choices, and checkpoints of something else."""
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import cast

from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..mistakes import Mistake
from ..neurons.pipelines import make_pipeline, usual_pipeline
from ..simulation.network import SpikingNetwork

RUNNING = ('progress', 'memory_budget')  # options of mmsnn.calibrate that cannot change its result
SHOWN = 5  # keys that a message names
NO_AVERAGES = ('EMAHook swaps weights after the conversion and cannot stand beside CalibrationHook: remove it from '
               'custom_hooks and test a checkpoint that holds the averaged weights')
SETTINGS = 'snn._settings'  # what the key of a calibrated part's settings ends with


class ConfigError(Mistake, ValueError):
    """A config asks CalibrationHook for what does not exist; its text is one line."""


class CheckpointError(Mistake, RuntimeError):
    """A checkpoint is not one of the model that is to be tested or calibrated."""


def check_averages(cfg: Config) -> None:
    """Refuse EMAHook in a config, which also fails where a checkpoint is loaded and nothing runs.

    Raises:
        ConfigError: it is there.
    """
    if any(hook['type'] in ('EMAHook', 'mmengine.EMAHook', EMAHook) for hook in cfg.get('custom_hooks') or []):
        raise ConfigError(NO_AVERAGES)


def check_choices(pipeline: str | None, options: dict) -> None:
    """Check a pipeline's name and options; without a name, that there is any pipeline which knows these.

    Raises:
        ConfigError: no such pipeline, option or value.
    """
    names = [pipeline] if pipeline else [usual_pipeline(steps, options.get('levels')) for steps in (1, 8)]
    mistakes = []
    for name in names:
        try:
            make_pipeline(name, **{key: value for key, value in options.items() if key not in RUNNING})
        except ValueError as error:
            mistakes.append(error)
    if len(mistakes) == len(names):
        raise ConfigError(f'CalibrationHook: {mistakes[-1]}') from None


def check_images(num_images: int, batch_size: int, dataset: dict | None, images: str | None) -> None:
    """Check what a hook says about its calibration images.

    Raises:
        ConfigError: no such amounts, two sources, or a data set without a type.
    """
    if not all(isinstance(number, int) and number >= 1 for number in (num_images, batch_size)):
        raise ConfigError('CalibrationHook: num_images and batch_size must be whole numbers of at least 1, not '
                          f'{num_images!r} and {batch_size!r}')
    if dataset is not None and images is not None:
        raise ConfigError('CalibrationHook: dataset and images name two sources of calibration images: give one of '
                          'them')
    if dataset is not None and 'type' not in dataset:
        raise ConfigError("CalibrationHook: dataset has no type: give a data set's whole config, such as "
                          "dict(type='CocoDataset', ann_file=...), as nothing is taken over from the training set's")


OF_THE_NETWORK = 'pipeline', 'time_steps', 'images', 'weight_bits'  # settings that are no choices of a pipeline


def check_settings(name: str, stored: dict, pipeline: str | None, options: dict) -> None:
    """Check that a checkpoint was calibrated with what the config asks for.

    Choices that change nothing beside the others do not count, such as a learning rate where no weights are calibrated.

    Args:
        name: of the spiking part.
        stored: ``settings`` of the checkpoint's network.
        pipeline: the config's, or None where it leaves the choice.
        options: the config's, of :class:`mmsnn.Pipeline`.

    Raises:
        CheckpointError: they differ; the message names each difference.
    """
    pipeline = pipeline or stored['pipeline']
    if stored['pipeline'] != pipeline:
        raise CheckpointError(f"the checkpoint's {name} was calibrated with pipeline={stored['pipeline']!r}, "
                              f'the config asks for {pipeline!r}. Use the same, or test the ANN checkpoint.')
    choices = {key: value for key, value in stored.items() if key not in OF_THE_NETWORK}
    own = make_pipeline(pipeline, **choices).in_effect()
    wanted = make_pipeline(pipeline, **options).in_effect()
    different = [f'{key}={own[key]!r} (the config: {wanted[key]!r})' for key in own
                 if key in wanted and own[key] != wanted[key]]
    if different:
        raise CheckpointError(f"the checkpoint's {name} was calibrated with {', '.join(different)}. Use the same, or "
                              'test the ANN checkpoint.')


def image_differences(stored: dict, wanted: dict) -> list[str]:
    """What a config says otherwise about the calibration images than a checkpoint has stored about its own."""
    return [f'{key} {stored[key]!r} (the config: {value!r})' for key, value in wanted.items()
            if key in stored and stored[key] != value]


def is_calibrated(state: Iterable[str]) -> bool:
    """Whether the keys of a checkpoint are those of a calibrated spiking network."""
    return any(key.endswith(SETTINGS) for key in state)


def check_fits(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Check that a checkpoint has the weights of a whole model, of which mmengine would only warn.

    The spiking parts check their own when they load; here is everything else: neck, heads. It is loaded as mmengine
    does, since modules may read the keys of older versions.

    Raises:
        CheckpointError: weights are missing, or have other shapes.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    metadata = getattr(state, '_metadata', {})
    state = OrderedDict((key.removeprefix('module.'), value) for key, value in state.items())
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []

    def load(module: nn.Module, prefix: str) -> None:
        if any(isinstance(child, SpikingNetwork) for child in module.children()):  # a wrapper
            if not any(key.startswith(prefix) for key in state):
                missing.append(f'{prefix}*' if prefix else 'every weight')
            return
        module._load_from_state_dict(state, prefix, metadata.get(prefix[:-1], {}), True, missing, unexpected, errors)
        for name, child in module._modules.items():
            if child is not None:
                load(child, f'{prefix}{name}.')

    load(model, '')
    wrong = [f'{key} is missing' for key in missing if not key.endswith('num_batches_tracked')]
    wrong += [' '.join(error.split()) for error in errors]
    if wrong:
        raise CheckpointError(f'the checkpoint is not one of this model ({type(model).__name__}): {some(wrong)}. Use '
                              'the checkpoint that was trained with this config.')
    if unexpected:
        print_log(f'the checkpoint has weights that this model ({type(model).__name__}) does not use: '
                  f'{some(unexpected)}', 'current', logging.WARNING)


def some(texts: list[str]) -> str:
    """The first few of some texts, and how many there are."""
    return ', '.join(texts[:SHOWN]) + (f' and {len(texts) - SHOWN} more' if len(texts) > SHOWN else '')
