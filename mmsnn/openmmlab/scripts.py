"""Run a script of the OpenMMLab package that a config belongs to, or build what the config describes."""
import contextlib
import importlib.util
import io
import os
import re
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..machine import keep_freed_memory
from .checkpoints import check_checkpoint
from .checks import check_averages
from .hooks import calibration_hook
from .preflight import check_command, given_options
from .wrapper import SpikingWrapper, spiking_parts

DDP_WITHOUT_GPU = {'model_wrapper_cfg.type': 'MMDistributedDataParallel', 'model_wrapper_cfg.device_ids': None}
CONFIG_SUFFIXES = ('.py', '.yaml', '.yml', '.json')
CHECKPOINT_SUFFIXES = ('.pth', '.pt', '.ckpt')


def start_without_gpu() -> bool:
    """Join the processes of torchrun on a machine without a GPU, which mmengine's own launcher needs.

    mmengine uses the process group that it finds; the model's wrapper needs ``DDP_WITHOUT_GPU``.
    """
    if torch.cuda.is_available() or 'RANK' not in os.environ:
        return False
    torch.distributed.init_process_group('gloo')
    return True


def read_config(path: str, options: dict | None = None) -> Config:
    """Read a config, with some of its settings replaced.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it, or what it imports, is no valid Python, or has no place for the options.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config '{path}' does not exist (looked in {Path.cwd()})")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config may execute anything
        raise ValueError(f"config '{path}' cannot be read ({type(error).__name__}: {error})") from error
    try:
        cfg.merge_from_dict(options or {})
    except (AssertionError, KeyError, TypeError) as error:  # what mmengine makes of a path that leads nowhere
        raise ValueError(f"config '{path}' has no place for --cfg-options {options} ({error})") from error
    return cfg


def import_quietly(scope: str) -> None:
    """Import a package of OpenMMLab without what it says, many times over, about software that it can do without."""
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.filterwarnings('ignore', 'faster_coco_eval is not installed')
        for name in ('datasets', 'evaluation'):
            if importlib.util.find_spec(scope) and importlib.util.find_spec(f'{scope}.{name}'):  # not all have both
                importlib.import_module(f'{scope}.{name}')
    for line in said.getvalue().splitlines():
        if 'Could not import OneDL' not in line:
            print(line)


def files_among(arguments: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    """The arguments that name a file of some kind, and are neither options nor values of ``--cfg-options``."""
    return [argument for argument in arguments if argument.endswith(suffixes)
            and (Path(argument).is_file() or not re.match(r'-|[\w.]+=', argument))]


def find_config(arguments: Sequence[str]) -> str | None:
    """Return the first argument that is a config file, or None if none looks like one.

    Raises:
        SystemExit: Only files that do not exist are named.
    """
    candidates = files_among(arguments, CONFIG_SUFFIXES)
    for candidate in candidates:
        if Path(candidate).is_file():
            return candidate
    if candidates:
        sys.exit(f"config '{candidates[0]}' does not exist (looked in {Path.cwd()})")
    return None


def run_script(name: str, arguments: Sequence[str]) -> None:
    """Run ``name`` (``'train'`` or ``'test'``) of mmdet or mmpretrain, in this process.

    The packages carry their scripts, so no copy is needed here. Which package it is stands in the config as
    ``default_scope``.

    Args:
        name: of the script.
        arguments: those that the script takes.

    Raises:
        SystemExit: The config, the package or its script is missing.
        ConfigError, CheckpointError: see :func:`check_command`.
    """
    arguments = list(arguments)
    config = find_config(arguments)
    if config is None:
        sys.exit(f'usage: mmsnn {name} CONFIG ...   (-h explains the arguments)')
    cfg = read_config(config, given_options(arguments))  # what it imports may add pipelines and threshold rules
    scope = cfg.get('default_scope')
    if scope is None:
        sys.exit(f"config '{config}' has no default_scope; set default_scope = 'mmdet' (or 'mmpretrain')")
    positional = files_among(arguments, CHECKPOINT_SUFFIXES)
    if name == 'test' and positional:
        check_checkpoint(positional[0])
    check_command(config, cfg, positional[0] if name == 'test' and positional else None)
    if 'pytorch' in arguments and start_without_gpu():
        at = arguments.index('--cfg-options') + 1 if '--cfg-options' in arguments else len(arguments)
        arguments[at:at] = ['--cfg-options'] * (at == len(arguments)) + [f'{k}={v}' for k, v in DDP_WITHOUT_GPU.items()]
    package = importlib.util.find_spec(scope)
    if package is None or not package.submodule_search_locations:
        sys.exit(f"'{scope}', the default_scope of the config, is not installed")
    script = Path(package.submodule_search_locations[0], '.mim', 'tools', f'{name}.py')
    if not script.is_file():
        sys.exit(f'{scope} carries no {script}; install it as a wheel, or run tools/{name}.py of its source directly')
    keep_freed_memory()
    import_quietly(scope)
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_path(str(script), run_name='__main__')


def load_calibrated(config: str, checkpoint: str, cfg_options: dict | None = None, work_dir: str | None = None,
                    launcher: str = 'none') -> tuple[Runner, BaseModel, dict]:
    """Build a spiking model and load a checkpoint; that of an ANN is calibrated as the config's CalibrationHook says.

    Args:
        config: of the spiking model.
        checkpoint: of its ANN, or calibrated.
        cfg_options: override settings of the config.
        work_dir: where the log goes.
        launcher: of the processes, as mmengine names them.

    Returns:
        The runner, the model, and the checkpoint's ``meta``.

    Raises:
        ValueError: the config names no CalibrationHook, or asks it for what does not exist.
        CheckpointError: the checkpoint is that of another model.
    """
    cfg = read_config(config, cfg_options)
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(config).stem))
    cfg.load_from = checkpoint
    cfg.launcher = launcher
    if launcher == 'pytorch' and start_without_gpu():
        cfg.merge_from_dict(DDP_WITHOUT_GPU)
    hook = calibration_hook(cfg)
    check_averages(cfg)
    keep_freed_memory()
    import_quietly(cfg.get('default_scope') or 'mmdet')
    runner = Runner.from_cfg(cfg)
    loaded = runner.load_checkpoint(checkpoint)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    hook.calibrate(model, cfg, runner.logger)
    return runner, model, loaded.get('meta', {})


def only_part(model: nn.Module) -> SpikingWrapper:
    """The spiking part of a model that has just one.

    Raises:
        ValueError: it has several.
    """
    parts = spiking_parts(model)
    if len(parts) > 1:
        raise ValueError(f'the model has several spiking parts ({", ".join(parts)}), and the command is for one: call '
                         'mmsnn.synthesise or mmsnn.export.formats.export for each')
    return next(iter(parts.values()))
