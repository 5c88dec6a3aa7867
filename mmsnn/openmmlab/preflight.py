"""What a command finds out before it builds a model: wrong choices, and a spiking checkpoint for an ANN's config."""
import argparse
import os
import sys
from zipfile import is_zipfile

import torch
from mmengine.config import Config, DictAction

from .checks import ConfigError, is_calibrated
from .hooks import HOOK_TYPES, WRAPPED, calibration_hook
from .scripts import UNSAFE


def check_command(config: str, checkpoint: str | None) -> None:
    """Check a config, with the ``--cfg-options`` of the command line, and the checkpoint that it is tested with.

    Raises:
        SystemExit: the config asks CalibrationHook for a pipeline, option or value that does not exist, or the
            checkpoint is calibrated and the config that of an ANN, which would run with random weights.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    cfg = Config.fromfile(config)  # what it imports may add pipelines and threshold rules
    cfg.merge_from_dict(parser.parse_known_args(sys.argv[1:])[0].cfg_options)
    if any(hook['type'] in HOOK_TYPES for hook in cfg.get('custom_hooks') or []):
        try:
            hook = calibration_hook(cfg)
        except ConfigError as error:
            sys.exit(f"config '{config}': {error}")
        if checkpoint is not None and os.environ.get('RANK', '0') == '0':
            # Before all that OpenMMLab has to say, of itself and of the machine.
            print('\n'.join(announcement(cfg.model, hook.plan(cfg))), flush=True)
    if checkpoint is None or '://' in checkpoint or spikes(cfg.get('model')):
        return
    loaded = torch.load(checkpoint, map_location='cpu', weights_only=UNSAFE not in os.environ,
                        mmap=is_zipfile(checkpoint) or None)
    if isinstance(loaded, dict) and is_calibrated(loaded.get('state_dict', loaded)):
        sys.exit(f"checkpoint '{checkpoint}' holds a calibrated spiking network, but the model of config '{config}' "
                 'is an ANN: test it with the config that it was calibrated with')


def announcement(model: object, plan: str) -> list[str]:
    """A line for each spiking part of a model config, with what the hook will do."""
    if isinstance(model, dict):
        inner = model.get(WRAPPED.get(model.get('type', ''), ''))
        if inner is not None:
            kind = inner['type'] if isinstance(inner['type'], str) else inner['type'].__name__
            return [f'mmsnn: {kind} spikes for T = {model["time_steps"]} steps; {plan}']
        return [line for value in model.values() for line in announcement(value, plan)]
    return [line for value in model for line in announcement(value, plan)] if isinstance(model, (list, tuple)) else []


def spikes(model: object) -> bool:
    """Whether a model config has a spiking part, of mmsnn's or a class of the user's own derived from it."""
    if isinstance(model, dict):
        return model.get('type') in WRAPPED or 'time_steps' in model or any(map(spikes, model.values()))
    return isinstance(model, (list, tuple)) and any(map(spikes, model))
