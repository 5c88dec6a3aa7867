"""Checkpoint files of calibrated models."""
import errno
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from .version import __version__


def save_checkpoint(model: nn.Module, path: str | Path, meta: dict | None = None) -> None:
    """Save a model's state and the names of its classes.

    Args:
        model: whose ``state_dict()`` is saved.
        path: the file; see :func:`write_checkpoint`.
        meta: of the ANN's checkpoint; the names of the classes are taken over from it.
    """
    kept = {key: meta[key] for key in ('dataset_meta', 'CLASSES') if meta and key in meta}
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    write_checkpoint(state, dict(kept, mmsnn_version=__version__), path)


def write_checkpoint(state_dict: dict[str, Tensor], meta: dict, path: str | Path) -> None:
    """Write a checkpoint of tensors and plain types (``meta`` is converted); see :func:`write_file`."""
    write_file(dict(state_dict=state_dict, meta=_plain(meta)), path)


def write_file(value, path: str | Path) -> None:
    """Write tensors and plain types so that ``path`` never holds a part of them.

    The file is written beside its destination under a temporary name, flushed to the disk and renamed. It loads
    with ``weights_only=True``.

    Raises:
        OSError: the file cannot be written; what stood there before is untouched.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent or '.')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except RuntimeError as error:  # what torch makes of a write that fails
        os.unlink(temporary)
        raise OSError(errno.EIO, f'{path} could not be written completely: is the disk full? Free space, or name '
                      'another file. What stood there before is untouched') from error
    except BaseException:
        os.unlink(temporary)
        raise


def _plain(value):
    """Turn arrays and the like into lists and numbers, which load without executing code."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, 'tolist') else value
