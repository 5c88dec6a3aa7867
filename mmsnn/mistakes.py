"""Tells a user's mistake, for which one line is enough, from a bug, whose traceback is wanted."""
import traceback
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent
REGISTRY = 'mmengine/registry/'  # refuses a config that names what nobody has registered
FILES = FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError
EXTRAS = {'mmengine': 'openmmlab', 'mmcv': 'openmmlab', 'mmdet': 'openmmlab', 'mmpretrain': 'openmmlab',
          'jinja2': 'demo', 'matplotlib': 'demo', 'nir': 'export', 'onnx': 'export', 'onnxscript': 'export',
          'onnxruntime': 'dev', 'spikingjelly': 'dev'}


class Mistake(Exception):
    """What a config or a checkpoint has wrong. Its text alone tells the user what to do, wherever it was raised."""


def mistake_of(error: Exception) -> str | None:
    """What to tell the user about an error that is theirs to mend, in one line; None for a bug.

    Theirs is a :class:`Mistake`, what else this package, or mmengine's registry, refuses by a ``raise`` of its own, a
    file that is missing or must not be used, and an optional package that is not installed. What such an error was
    turned into on its way counts too, as long as its message is still part of it.
    """
    for cause in _causes(error):
        if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
            return f"'{cause.name}' is not installed: pip install 'mmsnn[{EXTRAS[cause.name]}]'"
        if isinstance(cause, (Mistake, *FILES)) or _refused(cause):
            return _one_line(cause)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from and still quotes."""
    cause: BaseException | None = error
    while cause is not None and str(cause) in str(error):
        yield cause
        cause = cause.__cause__ or cause.__context__


def _refused(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    if REGISTRY in Path(frames[-1].filename).as_posix():
        return True  # what it refuses itself, or a class that does not take what the config gives it
    return (frames[-1].line or '').startswith('raise ') and Path(frames[-1].filename).is_relative_to(PACKAGE)


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # str() would quote it
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return '; '.join(lines).replace(':; ', ': ') or type(error).__name__
