"""Many evaluations side by side: worker processes that leave each other the cores, and results that survive a kill."""
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
    # The warnings are OpenMMLab's about itself, many times over; errors are raised all the same. Without the malloc
    # settings the C library returns every large temporary to the system and maps it anew at each time step.
    os.environ.update(OMP_NUM_THREADS=str(threads), PYTHONWARNINGS='ignore', MALLOC_MMAP_THRESHOLD_=str(2 ** 30),
                      MALLOC_TRIM_THRESHOLD_=str(2 ** 33), MALLOC_TOP_PAD_=str(2 ** 26))
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
