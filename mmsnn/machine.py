"""The machine that a process runs on: its cores, its memory, what its processor can do."""
import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

CORES = len(os.sched_getaffinity(0))  # those this process may use
FEATURES = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_tile', 'amx_bf16', 'amx_int8', 'asimd',
            'sve', 'bf16', 'i8mm')  # what the speed of float32, bfloat16 and int8 depends on, as Linux calls it


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory, where it is glibc.

    Otherwise every large temporary is returned to the system and mapped anew, and zeroed, at each time step.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation is a mapping of its own
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def return_freed_memory() -> None:
    """Let the C library return what is freed and kept, where it is glibc: pieces that nothing fits into add up."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def processor() -> tuple[str, list[str]]:
    """Name of the processor, and those of ``FEATURES`` that it has (Linux; otherwise none)."""
    flags = processor_flags()
    name = _cpuinfo().get('model name') or platform.processor() or platform.machine()
    return name, [feature for feature in FEATURES if feature in flags]


def processor_flags() -> set[str]:
    """All that the processor can do, as Linux calls it (otherwise nothing)."""
    found = _cpuinfo()
    return set((found.get('flags') or found.get('Features') or '').split())


def _cpuinfo() -> dict[str, str]:
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}


def compiler_name() -> str:
    """The C++ compiler that torch.compile takes; ``CXX`` names another."""
    return os.environ.get('CXX', 'g++')


def has_compiler() -> bool:
    return shutil.which(compiler_name()) is not None


def compiler() -> str | None:
    """The first line that the C++ compiler says about itself, or None where there is none."""
    path = shutil.which(compiler_name())
    if path is None:
        return None
    said = subprocess.run([path, '--version'], capture_output=True, text=True)
    return next(iter(said.stdout.splitlines()), path)
