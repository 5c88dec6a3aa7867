"""Convert and calibrate OpenMMLab detectors and classifiers into spiking neural networks."""
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .version import __version__ as __version__


def _is_command() -> bool:
    """Whether this process is the command ``mmsnn`` or ``python -m mmsnn``, and not yet past its arguments."""
    program = sys.argv[0] if sys.argv else ''
    return Path(program).stem == 'mmsnn' or (program == '-m' and 'mmsnn' in sys.orig_argv)


if TYPE_CHECKING or not _is_command():
    from .api import *  # noqa: F403
    from .api import __all__ as __all__
else:
    # Loading torch takes seconds: the command answers --help, and refuses wrong arguments, without it.
    def __getattr__(name: str):
        if name.startswith('__') and name != '__all__':
            raise AttributeError(name)
        return getattr(import_module('.api', __name__), name)
