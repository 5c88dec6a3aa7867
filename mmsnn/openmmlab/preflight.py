"""What a command finds out before it builds a model: wrong choices, and a spiking checkpoint for an ANN's config."""
import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from zipfile import is_zipfile

import torch
from mmengine.config import Config, DictAction

from .checkpoints import UNSAFE, allow_harmless
from .checks import CheckpointError, ConfigError, is_calibrated
from .hooks import HOOK_TYPES, WRAPPED, calibration_hook


def given_options(arguments: Sequence[str]) -> dict:
    """The ``--cfg-options`` among the arguments of a script.

    Raises:
        ConfigError: one has no value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    try:
        return parser.parse_known_args(arguments)[0].cfg_options
    except ValueError as error:
        raise ConfigError(f'--cfg-options takes KEY=VALUE ... ({error})') from error


def check_command(config: str, cfg: Config, checkpoint: str | None) -> None:
    """Check a config and the checkpoint that it is tested with.

    Args:
        config: the file, as the user names it.
        cfg: what is in it, with what the command line replaces.
        checkpoint: the file or its address, or None where nothing is tested.

    Raises:
        ConfigError: the config asks CalibrationHook for a pipeline, option or value that does not exist.
        CheckpointError: the checkpoint is calibrated and the config that of an ANN, which would run with random
            weights.
    """
    if any(hook['type'] in HOOK_TYPES for hook in cfg.get('custom_hooks') or []):
        try:
            hook = calibration_hook(cfg)
        except ConfigError as error:
            raise ConfigError(f"config '{config}': {error}") from error
        if checkpoint is not None and os.environ.get('RANK', '0') == '0':
            # Before all that OpenMMLab has to say, of itself and of the machine.
            print('\n'.join(announcement(cfg.model, partial(hook.plan, cfg))), flush=True)
    if checkpoint is not None and not spikes(cfg.get('model')) and holds_calibrated(checkpoint):
        raise CheckpointError(
            f"checkpoint '{checkpoint}' holds a calibrated spiking network, but the model of config '{config}' is an "
            'ANN: test it with the config that it was calibrated with')


def check_of_ann(checkpoint: str) -> None:
    """Check that a checkpoint is that of an ANN, for whoever converts its weights.

    Raises:
        CheckpointError: it is calibrated already; the ANN would be one of random weights.
    """
    if holds_calibrated(checkpoint):
        raise CheckpointError(f"checkpoint '{checkpoint}' is calibrated already: name the checkpoint of the ANN")


def holds_calibrated(checkpoint: str) -> bool:
    """Whether a file holds a calibrated spiking network; addresses are left to mmengine."""
    if '://' in checkpoint:
        return False
    allow_harmless()
    loaded = torch.load(checkpoint, map_location='cpu', weights_only=UNSAFE not in os.environ,
                        mmap=is_zipfile(checkpoint) or None)
    return isinstance(loaded, dict) and is_calibrated(loaded.get('state_dict', loaded))


def announcement(model: object, plan: Callable[[int, str], str]) -> list[str]:
    """A line for each spiking part of a model config, with what the hook will do for its T."""
    return [f'mmsnn: {kind} spikes for T = {time_steps} steps; {plan(time_steps, coding)}'
            for kind, time_steps, coding in spiking_models(model)]


def spiking_models(model: object) -> Iterator[tuple[str, int, str]]:
    """What spikes in a model config: the type of its ANN, T, and the coding."""
    if isinstance(model, dict):
        inner = model.get(WRAPPED.get(model.get('type', ''), ''))
        if inner is not None:
            kind = inner['type'] if isinstance(inner['type'], str) else inner['type'].__name__
            if 'time_steps' in model:  # otherwise the registry says what is missing
                yield kind, model['time_steps'], model.get('coding', 'rate')
            return
        model = list(model.values())
    for value in model if isinstance(model, (list, tuple)) else ():
        yield from spiking_models(value)


def spikes(model: object) -> bool:
    """Whether a model config has a spiking part, of mmsnn's or a class of the user's own derived from it."""
    if isinstance(model, dict):
        return model.get('type') in WRAPPED or 'time_steps' in model or any(map(spikes, model.values()))
    return isinstance(model, (list, tuple)) and any(map(spikes, model))
