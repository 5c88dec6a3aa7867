"""Convert and calibrate OpenMMLab detectors and classifiers into spiking neural networks."""
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from . import moved
from .version import __version__ as __version__

moved.install()


def _is_command() -> bool:
    """Whether this process is the command ``mmsnn`` or ``python -m mmsnn``, and not yet past its arguments."""
    program = sys.argv[0] if sys.argv else ''
    return Path(program).stem == 'mmsnn' or (program == '-m' and 'mmsnn' in sys.orig_argv)


# Loading torch takes seconds: the command answers --help, and refuses wrong arguments, without it.
_LAZY = _is_command()
if TYPE_CHECKING or not _LAZY:
    from .api import *  # noqa: F403
    from .api import __all__ as __all__

if not TYPE_CHECKING:
    def __getattr__(name: str):
        if name in moved.MOVED:
            return import_module(f'.{name}', __name__)
        if _LAZY and (name == '__all__' or not name.startswith('__')):
            return getattr(import_module('.api', __name__), name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
