"""The machine that a process runs on: its cores, its memory, what its processor can do."""
import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CORES = len(os.sched_getaffinity(0))  # those this process may use
FEATURES = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_tile', 'amx_bf16', 'amx_int8', 'asimd',
            'sve', 'bf16', 'i8mm')  # what the speed of float32, bfloat16 and int8 depends on, as Linux calls it


LARGE = 2 ** 25  # bytes, the most that glibc lets one choose
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of its mallopt
_kept = False


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory, where it is glibc.

    Otherwise every large temporary is returned to the system and mapped anew, and zeroed, at each time step.
    """
    global _kept
    _kept = True
    _choose(mappings=0)


@contextmanager
def large_memory_returned() -> Iterator[None]:
    """Let the C library return large pieces all the same, where :func:`keep_freed_memory` says otherwise.

    Those of a calibration on images of many sizes leave holes that nothing fits into: several GiB.
    """
    if _kept:
        _choose(mappings=2 ** 16)
    try:
        yield
    finally:
        if _kept:
            _choose(mappings=0)


def _choose(mappings: int) -> None:
    """How many pieces of at least LARGE bytes may be mappings of their own; the heap never shrinks."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, mappings)
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, 2 ** 31 - 1)


def processor() -> tuple[str, list[str]]:
    """Name of the processor, and those of ``FEATURES`` that it has (Linux; otherwise none)."""
    name, flags = platform.processor() or platform.machine(), set()
    path = Path('/proc/cpuinfo')
    for line in path.read_text().splitlines() if path.is_file() else ():
        key, _, value = (part.strip() for part in line.partition(':'))
        if key == 'model name':
            name = value
        elif key in ('flags', 'Features'):
            flags = set(value.split())
    return name, [feature for feature in FEATURES if feature in flags]


def compiler() -> str | None:
    """The first line that the C++ compiler says about itself, or None where there is none; ``CXX`` names another."""
    path = shutil.which(os.environ.get('CXX', 'g++'))
    if path is None:
        return None
    said = subprocess.run([path, '--version'], capture_output=True, text=True)
    return next(iter(said.stdout.splitlines()), path)
