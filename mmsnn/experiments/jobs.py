"""Many evaluations side by side: worker processes that leave each other the cores, and results that survive a kill."""
import ctypes
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

CORES = len(os.sched_getaffinity(0))  # those this process may use


def save_json(value, path: Path) -> None:
    """Write a json file so that it is never seen half-written."""
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory, where it is glibc.

    Otherwise every large temporary is returned to the system and mapped anew, and zeroed, at each time step.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation is a mapping of its own
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def run_jobs(function: Callable, jobs: list[tuple], workers: int) -> Iterator:
    """Yield ``function(*job)`` for every job, in the order in which they finish.

    Args:
        function: importable by name, as it runs in freshly started processes.
        jobs: arguments of each call.
        workers: how many run at a time; they share the cores this process may use.
    """
    workers = max(1, min(workers, len(jobs)))
    threads = max(1, CORES // workers)
    # For the workers. OpenMP reads its variable when torch is imported: waiting threads must not keep the cores busy.
    # The warnings are OpenMMLab's about itself, many times over; errors are raised all the same.
    os.environ.update(OMP_NUM_THREADS=str(threads), PYTHONWARNINGS='ignore')
    with ProcessPoolExecutor(workers, get_context('spawn'), _start_worker, (threads,)) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise


def _start_worker(threads: int) -> None:
    import torch
    torch.set_num_threads(threads)
    keep_freed_memory()
