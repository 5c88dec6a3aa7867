"""``native.cpp`` as machine code for this processor, made once and kept in the user's cache folder."""
import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..machine import compiler_name, has_compiler, processor_flags
from .compiling import cache_folder
from .integers import has_integers


def library() -> Any:
    """The functions of ``native.cpp``; None where they cannot be had."""
    return _library() if has_integers() else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = processor_flags()
    if not {'avx512_vnni', 'avx512vbmi'} <= found or not has_compiler():
        return None
    options = ['-O3', '-std=c++17', '-shared', '-fPIC', '-fopenmp',
               *(f'-mavx512{name}' for name in ('f', 'bw', 'vl', 'dq', 'vnni', 'vbmi'))]
    limit = os.environ.get('ONEDNN_MAX_CPU_ISA', '').upper()  # what keeps oneDNN from AMX keeps this from it too
    if 'amx_int8' in found and ('AMX' in limit or not limit.startswith(('AVX', 'SSE'))) \
            and hasattr(torch.cpu, '_init_amx') and torch.cpu._init_amx():
        options += ['-mamx-tile', '-mamx-int8']
    source = Path(__file__).with_name('native.cpp')
    key = hashlib.sha256(source.read_bytes() + ' '.join([compiler_name(), *options]).encode()).hexdigest()[:16]
    file = cache_folder().with_name('native') / f'{key}.so'
    try:
        try:
            return ctypes.CDLL(str(file))
        except OSError:  # not there, or damaged
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # another process may be at it
                made = Path(folder, file.name)
                subprocess.run([compiler_name(), *options, str(source), '-o', str(made)], check=True,
                               capture_output=True, text=True)
                made.replace(file)
            return ctypes.CDLL(str(file))
    except (OSError, subprocess.CalledProcessError) as error:
        logging.getLogger(__name__).warning(
            "dtype='int8': %s could not be compiled, simulating without, which is slower (%s)", source,
            getattr(error, 'stderr', None) or error)
        return None
