"""Files that are written as a whole or not at all: checkpoints, json."""
import errno
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path

import torch
from torch import Tensor, nn

from .version import __version__

INCOMPLETE = ('{} could not be written completely: is the disk full? Free space, or name another file. What stood '
              'there before is untouched')


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
    """Write a checkpoint of tensors and plain types (``meta`` is converted); see :func:`new_file`."""
    write_file(dict(state_dict=state_dict, meta=_plain(meta)), path)


def write_file(value, path: str | Path) -> None:
    """Write tensors and plain types; they load with ``weights_only=True``. See :func:`new_file`."""
    with new_file(path) as temporary, open(temporary, 'wb') as file:
        try:
            torch.save(value, file)
            file.flush()
        except RuntimeError as error:  # what torch makes of a write that fails
            raise OSError(errno.EIO, INCOMPLETE.format(path)) from error


def save_json(value, path: Path) -> None:
    """Write a json file, tensors and arrays as lists; see :func:`new_file`."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=methodcaller('tolist')))


def check_writable(path: Path, *sources: str | Path) -> None:
    """Find out before the work, not after it, whether a file can be written; makes its folder.

    Args:
        path: the file.
        sources: files that the work reads, and that it must leave as they are.

    Raises:
        SystemExit: It cannot, or is one of the sources.
    """
    if any(os.path.exists(source) and path.exists() and path.samefile(source) for source in sources):
        sys.exit(f"'{path}' is read, and would be lost: name another file to write")
    if path.is_dir():
        sys.exit(f"'{path}' is a folder: name the file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        sys.exit(f"'{path}' cannot be written ({error.strerror}): name a file in a folder that can be written to")


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name to write to, so that ``path`` never holds a part of a file.

    It lies beside its destination; when the block ends it is flushed to the disk and renamed, and when the block fails
    it is removed. Who may read the file is up to the process's umask, as with any other.

    Raises:
        OSError: the file cannot be written; what stood there before is untouched.
    """
    path = Path(path)
    name = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        yield name
        os.fsync(descriptor)
        os.replace(name, path)
    except BaseException as error:
        name.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, INCOMPLETE.format(path)) from error
        raise
    finally:
        os.close(descriptor)


def _plain(value):
    """Turn arrays and the like into lists and numbers, which load without executing code."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, 'tolist') else value
