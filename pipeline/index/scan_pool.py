"""Scan many shards at once, in processes that go away with the one that started them."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.scan import scan_shard, write_scan
from tessera.pipeline.storage import file_state, is_remote
from tessera.pipeline.workers import start_worker, worker_killed

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_NUM_TRIES = 4
_FIRST_WAIT_S = 0.2


class _StoppedError(Exception):
    """The scan is to end early."""


class _Shared:
    """What the processes share: bytes done, and whether to stop."""

    def __init__(self, context: Any) -> None:
        self.done_bytes = context.Value("q", 0)
        self.stop = context.Event()

    def advance(self, num_bytes: int) -> None:
        if self.stop.is_set():
            raise _StoppedError
        with self.done_bytes.get_lock():
            self.done_bytes.value += num_bytes


_shared: _Shared | None = None


def scan_shards(
    shards: Mapping[str, Path],
    options: ScanOptions,
    *,
    num_workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Scan shards and store what is found, each as soon as it is read through.

    Args:
        shards: file of the scan that is written, by the absolute path or URL of the tar.
        options: what is read and how thoroughly it is checked.
        num_workers: processes, a shard each; 1 scans in this process.
        progress: called with the bytes done and the bytes there are.

    Raises:
        OSError: a shard cannot be read.
        RuntimeError: a worker process was killed.
    """
    total_bytes = sum(file_state(location).size_bytes for location in shards)
    num_workers = min(num_workers, len(shards))
    if num_workers <= 1:
        _scan_here(shards, options, total_bytes, progress)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        # Imported once and shared by all workers.
        context.set_forkserver_preload(["tessera.pipeline.index.tokenizer"])
    shared = _Shared(context)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(shared,)
    )
    with pool:
        try:
            with _interrupts_held():
                futures = [
                    pool.submit(_scan_in_worker, location, path, options)
                    for location, path in shards.items()
                ]
            _watch(futures, shared, total_bytes, progress)
        except BrokenProcessPool as error:
            raise RuntimeError(worker_killed(num_workers)) from error
        finally:
            shared.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _scan_here(
    shards: Mapping[str, Path],
    options: ScanOptions,
    total_bytes: int,
    progress: Callable[[int, int], None],
) -> None:
    done_bytes = 0

    def advance(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        progress(done_bytes, total_bytes)

    for location, path in shards.items():
        _scan_one(location, path, options, advance)


def _watch(
    futures: list[Future[None]],
    shared: _Shared,
    total_bytes: int,
    progress: Callable[[int, int], None],
) -> None:
    """Report progress until all are done; the first failure is raised at once."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        progress(shared.done_bytes.value, total_bytes)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait: a worker left half started comes up later, orphaned, and fails loudly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        signal.raise_signal(signal.SIGINT)


def _start_worker(shared: _Shared) -> None:
    global _shared  # noqa: PLW0603 - the only way to hand an Event to the workers of a pool
    _shared = shared
    start_worker()


def _scan_in_worker(location: str, path: Path, options: ScanOptions) -> None:
    if _shared is None:
        raise RuntimeError("the worker was not started by scan_shards")
    _shared.advance(0)  # a shard that was waiting in the pool's queue is not begun after a stop
    _scan_one(location, path, options, _shared.advance)


def _scan_one(
    location: str, path: Path, options: ScanOptions, advance: Callable[[int], None]
) -> None:
    """Scan a shard and store what is found; a remote one that breaks off is begun again."""
    if not is_remote(location):
        write_scan(scan_shard(location, options, advance), path, options)
        return
    wait_s = _FIRST_WAIT_S
    for attempt in range(1, _NUM_TRIES + 1):
        done_bytes = 0

        def count(num_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += num_bytes
            advance(num_bytes)

        try:
            write_scan(scan_shard(location, options, count), path, options)
        except (_StoppedError, MemoryError):
            raise
        except Exception as error:
            # Clients of remote storage raise errors of their own.
            if attempt == _NUM_TRIES or isinstance(error, FileNotFoundError):
                raise OSError(f"{location}: {type(error).__name__}: {error}") from error
            advance(-done_bytes)
            why = error or type(error).__name__
            logger.warning("%s broke off (%s) and is begun again", location, why)
            time.sleep(wait_s)
            wait_s *= 2
        else:
            return
