"""Many evaluations side by side: worker processes that leave each other the cores, and results that survive a kill."""
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context

from ..machine import CORES, keep_freed_memory
from ..mistakes import Mistake, mistake_of

# What the user has set: beside other work, threads that wait for each other take many times longer than one.
THREADS = int(os.environ.get('OMP_NUM_THREADS') or 0)


def run_jobs(function: Callable, jobs: list[tuple], workers: int) -> Iterator:
    """Yield ``function(*job)`` for every job, in the order in which they finish.

    Args:
        function: importable by name, as it runs in freshly started processes.
        jobs: arguments of each call.
        workers: how many run at a time; they share the cores this process may use.

    Raises:
        SystemExit: a job found a mistake of the user's; its message says which.
        Mistake: a worker was killed, as a system does that runs out of memory.
    """
    workers = max(1, min(workers, len(jobs)))
    threads = THREADS or max(1, CORES // workers)
    # For the workers. OpenMP reads its variable when torch is imported: waiting threads must not keep the cores busy.
    # The warnings are OpenMMLab's about itself, many times over; errors are raised all the same.
    with ProcessPoolExecutor(workers, get_context('spawn'), _start_worker, (threads,)) as pool:
        with variables(OMP_NUM_THREADS=str(threads), PYTHONWARNINGS='ignore'):  # all workers start here
            futures = [pool.submit(_run, function, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise Mistake('a worker process was killed, as a system does that runs out of memory: run fewer at a time '
                          '(--workers), or smaller batches of images. What is finished is kept; the same command goes '
                          'on from there') from error
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Give the processes that are started within other variables of the environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(function: Callable, job: tuple):
    """Call a function; where its error comes from, only this process can tell (mmsnn/mistakes.py)."""
    try:
        return function(*job)
    except Exception as error:
        mistake = mistake_of(error)
        if mistake is None:
            raise
        sys.exit(mistake)


def _start_worker(threads: int) -> None:
    import torch
    import_module('mmsnn.api')  # registers what configs name
    torch.set_num_threads(threads)
    keep_freed_memory()
