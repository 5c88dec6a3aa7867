"""Run a script of the OpenMMLab package that a config belongs to."""
import codecs
import importlib
import importlib.util
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path
from zipfile import is_zipfile

import numpy
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..experiments.jobs import keep_freed_memory
from .checks import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[2]
DDP_WITHOUT_GPU = {'model_wrapper_cfg.type': 'MMDistributedDataParallel', 'model_wrapper_cfg.device_ids': None}
CONFIG_SUFFIXES = ('.py', '.yaml', '.yml', '.json')


UNSAFE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'  # torch's own variable, for whoever trusts a file
if UNSAFE not in os.environ:
    # Where a checkpoint holds more than data, mmengine would load it again with pickle, which executes what is in it.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def allow_harmless() -> None:
    """Let torch load what mmengine's checkpoints of a training hold besides tensors: records of losses, as arrays.

    torch calls nothing but what is allowed while it loads, so that ``getattr`` alone runs no code of a file. To be
    called before every load: behind its own, mmengine of the forks forbids again what it allowed.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):  # torch before 2.4
        return
    new = numpy.lib.NumpyVersion(numpy.__version__) >= '2.0.0'
    arrays = importlib.import_module('numpy._core.multiarray' if new else 'numpy.core.multiarray')
    numbers = [type(numpy.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint32')]
    torch.serialization.add_safe_globals([HistoryBuffer, getattr, slice, codecs.encode, numpy.ndarray, numpy.dtype,
                                          arrays._reconstruct, arrays.scalar, *numbers])


allow_harmless()  # for what mmengine loads, where it does not do so itself


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint is there and loads without executing code; addresses are left to mmengine.

    Raises:
        SystemExit: It is missing, damaged, or holds more than tensors and plain data.
    """
    if '://' in path or UNSAFE in os.environ:
        return
    if not Path(path).is_file():
        sys.exit(f"checkpoint '{path}' does not exist (looked in {Path.cwd()})")
    allow_harmless()
    try:
        torch.load(path, map_location='cpu', weights_only=True, mmap=is_zipfile(path) or None)
    except Exception as error:  # whatever a damaged file makes of the many formats that torch tries
        lines = str(error).splitlines() or [type(error).__name__]
        unsafe = re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', str(error))  # function or class that it asks for
        if unsafe:
            sys.exit(f"checkpoint '{path}' holds more than tensors and plain data ({unsafe[1]}) and is not loaded, as "
                     f'that could execute code. If you trust the file, set {UNSAFE}=1')
        sys.exit(f"checkpoint '{path}' is damaged or no checkpoint ({lines[0].strip()}): copy or make it again")


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, whether a file can be written; makes its folder.

    Raises:
        SystemExit: It cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        sys.exit(f"'{path}' cannot be written ({error.strerror}): name a file in a folder that can be written to")


def start_without_gpu() -> bool:
    """Join the processes of torchrun on a machine without a GPU, which mmengine's own launcher needs.

    mmengine uses the process group that it finds; the model's wrapper needs ``DDP_WITHOUT_GPU``.
    """
    if torch.cuda.is_available() or 'RANK' not in os.environ:
        return False
    torch.distributed.init_process_group('gloo')
    return True


def find_config(arguments: list) -> str | None:
    """Return the first argument that is a config file, or None if none looks like one.

    Raises:
        SystemExit: Only files that do not exist are named.
    """
    candidates = [argument for argument in arguments if argument.endswith(CONFIG_SUFFIXES) and argument[0] != '-']
    for candidate in candidates:
        if Path(candidate).is_file():
            return candidate
    if candidates:
        sys.exit(f"config '{candidates[0]}' does not exist (looked in {Path.cwd()})")
    return None


def run_script(name: str) -> None:
    """Run ``name`` (``'train'`` or ``'test'``) of mmdet or mmpretrain with the arguments in ``sys.argv``.

    The packages carry their scripts, so no copy is needed here. Which package it is stands in the config as
    ``default_scope``; without a config it is mmdet, whose script then explains the arguments.

    Raises:
        SystemExit: The config, the package or its script is missing.
    """
    from .preflight import check_command

    # Data and checkpoints may be anywhere, but `mmsnn` must import even where it is not installed.
    sys.path.insert(0, str(ROOT))
    config = find_config(sys.argv[1:])
    if config is None:
        if not {'-h', '--help'} & set(sys.argv[1:]):
            sys.exit(f'usage: python {sys.argv[0]} CONFIG ...   (-h explains the arguments)')
        scope = 'mmdet'
    else:
        scope = Config.fromfile(config, import_custom_modules=False).get('default_scope')
        if scope is None:
            sys.exit(f"config '{config}' has no default_scope; set default_scope = 'mmdet' (or 'mmpretrain')")
    positional = [argument for argument in sys.argv[1:] if argument.endswith(('.pth', '.pt', '.ckpt'))]
    if name == 'test' and positional and config is not None:
        check_checkpoint(positional[0])
    if config is not None:
        check_command(config, positional[0] if name == 'test' and positional else None)
    if 'pytorch' in sys.argv and start_without_gpu():
        at = sys.argv.index('--cfg-options') + 1 if '--cfg-options' in sys.argv else len(sys.argv)
        sys.argv[at:at] = ['--cfg-options'] * (at == len(sys.argv)) + [f'{k}={v}' for k, v in DDP_WITHOUT_GPU.items()]
    package = importlib.util.find_spec(scope)
    if package is None:
        sys.exit(f"'{scope}', the default_scope of the config, is not installed")
    script = Path(package.submodule_search_locations[0], '.mim', 'tools', f'{name}.py')
    if not script.is_file():
        sys.exit(f'{scope} carries no {script}; install it as a wheel, or run tools/{name}.py of its source directly')
    keep_freed_memory()
    try:
        runpy.run_path(str(script), run_name='__main__')
    except (CheckpointError, ConfigError) as error:
        sys.exit(str(error))


def load_calibrated(config: str, checkpoint: str, cfg_options: dict | None = None, work_dir: str | None = None,
                    launcher: str = 'none', anew: bool = False) -> tuple[Runner, nn.Module, dict]:
    """Build a spiking model and load a checkpoint; that of an ANN is calibrated as the config's CalibrationHook says.

    Args:
        config: of the spiking model.
        checkpoint: of its ANN, or calibrated.
        cfg_options: override settings of the config.
        work_dir: where the log goes.
        launcher: of the processes, as mmengine names them.
        anew: refuse a checkpoint that has been calibrated already.

    Returns:
        The runner, the model, and the checkpoint's ``meta``.

    Raises:
        ValueError: the config names no CalibrationHook, or asks it for what does not exist.
        CheckpointError: the checkpoint is that of another model, or there is nothing to calibrate in it.
    """
    from .hooks import calibration_hook
    from .wrapper import spiking_parts

    cfg = Config.fromfile(config)
    cfg.merge_from_dict(cfg_options or {})
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(config).stem))
    cfg.load_from = checkpoint
    cfg.launcher = launcher
    if launcher == 'pytorch' and start_without_gpu():
        cfg.merge_from_dict(DDP_WITHOUT_GPU)
    hook = calibration_hook(cfg)
    keep_freed_memory()
    runner = Runner.from_cfg(cfg)
    loaded = runner.load_checkpoint(checkpoint)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if anew and all(part.calibrated for part in spiking_parts(model).values()):
        raise CheckpointError(f"checkpoint '{checkpoint}' is calibrated already: name the checkpoint of the ANN")
    hook.calibrate(model, cfg, runner.logger)
    return runner, model, loaded.get('meta', {})
