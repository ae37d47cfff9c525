"""What the processes of a download do before they import anything large, and how they end."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

_UNUSED = (
    *("wandb", "webdataset", "fire", "exifread"),
    *("img2dataset.resizer", "img2dataset.blurrer"),
)


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
