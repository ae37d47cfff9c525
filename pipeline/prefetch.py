"""Runs an iterator in a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_S = 0.1


class _End:
    """Marks the end of the items; carries the exception that ended them, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetched(Iterator[Item], Generic[Item]):
    """The items of an iterator, made ahead by a daemon thread.

    An exception in the thread is raised again by the `__next__` that reaches its place, and by
    every later one; nothing is ever waited for without looking whether it can still come.
    """

    def __init__(self, items: Iterator[Item], depth: int, name: str) -> None:
        """Start the thread.

        Args:
            items: iterated in the thread only.
            depth: finished items that may wait.
            name: of the thread, for stack dumps.
        """
        self._items = items
        self._ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
        self._closing = threading.Event()
        self._ended: _End | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetched[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended is None:
            item = self._take()
            if not isinstance(item, _End):
                return item
            self._ended = item
        if self._ended.error is not None:
            raise self._ended.error
        raise StopIteration

    def stop(self) -> None:
        """Have the thread end behind the item it is at, without waiting for that."""
        self._closing.set()
        self._ended = self._ended or _End(None)

    def close(self) -> None:
        """End the thread and drop what it made. Further items are not to be had."""
        self.stop()
        # A full queue would keep the thread from seeing that it should end.
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._thread.join()

    def _take(self) -> Item | _End:
        while True:
            try:
                return self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                if self._closing.is_set():
                    return _End(None)
                if not self._thread.is_alive() and self._ready.empty():
                    return _End(RuntimeError(f"thread {self._thread.name} died without a word"))

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(_End(None))
        except BaseException as error:
            self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_POLL_S)
                return True
        return False
