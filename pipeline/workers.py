"""Work in processes that end with the one that started them, and whose death is noticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")

_AHEAD = 3
"""Pieces of work for each process that may be under way or wait to be taken."""


def map_in_processes(
    function: Callable[[Work], Result], work: Iterable[Work], num_workers: int
) -> Iterator[Result]:
    """The results of a function in the order of the work, a bounded number of pieces ahead.

    Args:
        function: can be pickled, as can the work and the results.
        work: its arguments; taken as they are needed.
        num_workers: processes.

    Raises:
        RuntimeError: a process was killed.
    """
    waiting: deque[Future[Result]] = deque()
    # Spawned, not forked: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_worker)
    try:
        for piece in work:
            if len(waiting) == _AHEAD * num_workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, piece))
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(worker_killed(num_workers)) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def worker_killed(num_workers: int) -> str:
    """What to tell a person whose pool lost a process."""
    why = "a worker process was killed, perhaps for want of memory"
    return f"{why}; try fewer workers than {num_workers}"


def start_worker() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when that ends."""
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A parent that is killed cannot tell its workers to stop; without this they would stay."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
