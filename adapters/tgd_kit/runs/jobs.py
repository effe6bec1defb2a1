"""Independent jobs in processes of one thread each: one job per core is quicker than two cores for one job."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from tgd_kit.devices import one_thread
from tgd_kit.errors import RunError


def run_jobs(
    function: Callable[..., object], arguments: Iterable[tuple[Any, ...]], workers: int
) -> Iterator[None]:
    """Call `function` once with each of `arguments`, yielding after each call.

    Args:
        function: importable, as other processes call it. It writes files: what it returns is dropped.
        arguments: of each call.
        workers: number of processes. One stays in this process. With more, a script that calls this needs
            the usual `if __name__ == "__main__":`.

    Raises:
        RunError: a process died.
    """
    jobs = list(arguments)
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            with one_thread():
                function(*job)
            yield
        return
    # Fresh processes: a forked one would inherit locks of threads (torch's, rich's) that it does not have.
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), initializer=_prepare) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise RunError("A process died, most likely for lack of memory.", "Use fewer workers.") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """Ctrl-C reaches the whole process group; only the parent acts on it, and lets running jobs finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes: without this they would wait for jobs for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
