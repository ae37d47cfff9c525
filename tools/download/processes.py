"""What the processes of a download do before they import anything large, and how they end."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

_UNUSED = (
    *("wandb", "webdataset", "fire", "exifread"),
    *("img2dataset.resizer", "img2dataset.blurrer"),
)
_kept_open: list[Any] = []


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        """Remember the signal."""
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


class _Unused(ModuleType):
    """A module of which nothing is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


@contextmanager
def without_unused_imports() -> Iterator[None]:
    """Import img2dataset without what it imports and this download replaces or never uses.

    That is OpenCV and albumentations (its resizer), webdataset, which imports torch where it finds
    it, and W&B: a worker is four times as large with them, and takes seconds longer to start.
    """
    before = {name: sys.modules.get(name) for name in _UNUSED}
    sys.modules.update({name: _Unused(name) for name in _UNUSED})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def begin_worker(folder: str, log: str, counts: Any) -> None:
    """Prepare a worker process: it ends with its parent, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    lock = (Path(folder) / "workers.lock").open("a")
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_SH)
    _kept_open.append(lock)
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from tools.download import worker

    worker.counts = counts


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `Stopped` while the block runs, so that what was started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_program(work: Callable[[], Mapping[str, object]]) -> int:
    """Do the work of a program and print what it returns as one JSON line.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 130 and 143 stopped.
    """
    try:
        with stop_on_sigterm():
            result = work()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("stopped; the same command resumes", file=sys.stderr)
        return getattr(stop, "exit_status", 130)
    print(json.dumps(result))
    return 0
