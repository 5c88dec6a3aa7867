"""What numbers depend on besides the code: versions, the compiler, the processor, devices, threads."""
import platform
import time
from importlib.metadata import packages_distributions, version

import torch

from ..machine import CORES, compiler, processor
from ..version import __version__

PACKAGES = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain')


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the machine."""
    known = packages_distributions()
    found = {name: f'{known[name][0]} {version(known[name][0])}' for name in PACKAGES if name in known}
    return dict(mmsnn=__version__, **found, python=platform.python_version(), machine=platform.machine(),
                system=platform.system(), date=time.strftime('%Y-%m-%d'))


def describe() -> dict[str, str | list[str]]:
    """All that ``mmsnn info`` prints."""
    name, features = processor()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return dict(
        versions(), compiler=compiler() or "none: compile=True needs one (set CXX, or install g++)", processor=name,
        features=features or 'none known', torch_kernels=torch.backends.cpu.get_cpu_capability(),
        threads=f'{torch.get_num_threads()} of torch, {CORES} cores for this process',
        gpus=gpus or 'none')
