"""Worker processes of a download: they end with their parent, and one that dies harms no other."""

from __future__ import annotations

import fcntl
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

from tessera.tools.download.causes import Cause

LOG = "download.log"
_LOCK = "workers.lock"
_SHARDS_A_PROCESS = 20  # then a fresh one, should a codec leak
_ORPHANS_END_S = 10.0
_kept_open: list[Any] = []

Shard = tuple[int, str]


class Workers:
    """Worker processes, each a pool of its own: one that is killed costs its own shard only."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder.resolve()
        self._context = multiprocessing.get_context("spawn")
        self.counts = [self._context.RawArray("q", 3 + len(Cause)) for _ in range(count)]
        """Of each worker: shard + 1, rows, pictures, rows by cause."""
        self._pools = [self._open(number) for number in range(count)]
        self._served = [0] * count
        self.free = set(range(count))  # workers without a shard
        self.running: dict[Future[str], tuple[int, Shard]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            kill_workers()
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def submit(self, attempt: Callable[[Shard], str], shard: Shard) -> None:
        """Give a shard to a free worker."""
        number = self.free.pop()
        self.running[self._pools[number].submit(attempt, shard)] = (number, shard)

    def wait(self, seconds: float) -> list[tuple[Shard, str | None]]:
        """Shards that ended, and why each failed: empty if it did not, None if its worker died."""
        ended = []
        for future in wait(self.running, timeout=seconds, return_when=FIRST_COMPLETED).done:
            number, shard = self.running.pop(future)
            lost = isinstance(future.exception(), BrokenProcessPool)
            self._served[number] += 1
            if lost or self._served[number] == _SHARDS_A_PROCESS:
                self._pools[number].shutdown(wait=False)
                self._pools[number], self._served[number] = self._open(number), 0
            self.free.add(number)
            ended.append((shard, None if lost else future.result()))
        return ended

    def _open(self, number: int) -> ProcessPoolExecutor:
        given = (self._folder, self.counts[number])
        return ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_begin_worker, initargs=given
        )


def kill_workers() -> None:
    """Kill every process that this one started."""
    for child in multiprocessing.active_children():
        child.kill()


def wait_for_orphans(folder: Path) -> None:
    """Wait for the workers of a killed download, which end within moments and may write until then.

    Raises:
        RuntimeError: they do not end.
    """
    end = time.monotonic() + _ORPHANS_END_S
    with (folder / _LOCK).open("a") as file, suppress(OSError):  # a file system without locks
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise RuntimeError(
                        f"workers of an earlier download in {folder} do not end: kill them first"
                    ) from None
                time.sleep(0.05)


def _begin_worker(folder: Path, counts: Any) -> None:
    """Prepare a worker process: it ends with its parent, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    lock = (folder / _LOCK).open("a")
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_SH)
    _kept_open.append(lock)
    with (folder / LOG).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from tessera.tools.download import worker

    worker.counts = counts
