"""Checkpoint files: which may be loaded, other networks' names, and what is left of a training's."""
import codecs
import importlib
import os
import re
import sys
from pathlib import Path
from zipfile import is_zipfile

import numpy
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from ..files import write_checkpoint
from ..version import __version__
from .hooks import plain_config

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


def find_state(checkpoint: object) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, wherever the file has them, in their order; a list of images has none."""
    if not isinstance(checkpoint, dict):
        return {}
    for key in ('state_dict', 'model', 'net', 'model_state_dict'):
        if isinstance(checkpoint.get(key), dict):
            return find_state(checkpoint[key])
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def rename(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of ``state`` under the names of ``own``.

    Raises:
        ValueError: numbers, shapes or kinds of tensors differ; the message shows the first difference.
    """
    theirs, ours = ([name for name in names if not name.endswith('num_batches_tracked')] for names in (state, own))
    for one, other in zip(theirs, ours):
        if state[one].shape != own[other].shape or one.rsplit('.', 1)[-1] != other.rsplit('.', 1)[-1]:
            raise ValueError(f'{one} {tuple(state[one].shape)} in the checkpoint stands where the config has '
                             f'{other} {tuple(own[other].shape)}: these are different networks')
    if len(theirs) != len(ours):
        raise ValueError(f'the checkpoint has {len(theirs)} tensors, the network of the config {len(ours)}; the first '
                         f'without a partner is {(theirs + ours)[min(len(theirs), len(ours))]}')
    return {other: state[one] for one, other in zip(theirs, ours)}


def convert_checkpoint(cfg: Config, source: Path, target: Path) -> list[str]:
    """Write the tensors of a checkpoint from elsewhere under the names that the network of a config has.

    Args:
        cfg: of the ANN, or of its spiking model.
        source: the checkpoint; no code in it is executed.
        target: the file to write.

    Returns:
        The names.

    Raises:
        ValueError: they are different networks; the message shows the first difference.
    """
    cfg = plain_config(cfg)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model = cfg.model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    check_checkpoint(str(source))
    state = find_state(torch.load(source, map_location='cpu', weights_only=True))
    renamed = rename(state, MODELS.build(model).state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(renamed, dict(mmsnn_version=__version__), target)
    return list(renamed)


def publish(source: str | Path, target: str | Path) -> None:
    """Write weights and data set names of ``source`` to ``target``, all or nothing.

    Unlike mmdet's ``publish_model.py`` this also drops the config text and the log history, which name paths of the
    machine that trained and do not load with ``torch.load(weights_only=True)``.

    Weights are rounded to half precision (they load into float32 models as they are), which halves the file; biases,
    the statistics of normalisation and weights beyond half precision's range stay float32.

    Args:
        source: a checkpoint of mmengine's Runner, or another in which :func:`find_state` finds tensors.
        target: the file to write.

    Raises:
        ValueError: there are no weights in it.
    """
    check_checkpoint(str(source))
    allow_harmless()
    checkpoint = torch.load(source, map_location='cpu', weights_only=UNSAFE not in os.environ)
    state = find_state(checkpoint)
    if not state:
        raise ValueError(f"checkpoint '{source}' holds no weights")
    # clone() lets go of storage that is shared with, or larger than, the tensor.
    state_dict = {
        key: value.to(stored_type(value)).clone() for key, value in state.items()
    }
    meta = {key: checkpoint['meta'][key] for key in ('dataset_meta', 'epoch') if key in checkpoint.get('meta', {})}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(state_dict, meta, target)


def stored_type(value: Tensor) -> torch.dtype:
    """The type that a published tensor has."""
    if not value.is_floating_point():
        return value.dtype
    fits = value.ndim > 1 and bool((value.abs() <= torch.finfo(torch.float16).max).all())
    return torch.float16 if fits else torch.float32
