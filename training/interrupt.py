"""Ctrl-C and SIGTERM end a run after the current step, with a checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(BaseException):
    """The person or the scheduler asked the program to end.

    Derived from BaseException, so that nothing on the way takes it for a failure to recover from.
    """

    def __init__(self, signum: int) -> None:
        """Remember the signal.

        Args:
            signum: the signal's number.
        """
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process ended by this signal: 130 or 143."""
        return 128 + self.signum


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the program at once, with status 130, while it imports what it needs.

    An exception would be raised inside the libraries that are being imported, and some lose it.
    """
    signal.signal(signal.SIGINT, _end)


def _end(_signum: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"stopped before the start\n")
    os._exit(128 + signal.SIGINT)


class StopRequests:
    """Turns SIGINT and SIGTERM into `Interrupted`, at once or at the next good moment."""

    def __init__(self) -> None:
        self._deferring = False
        self._waiting = False
        self._signum: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block, and put the former handlers back after it."""
        former = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in former.items():
                signal.signal(signum, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block a first signal only sets `requested`; a second one raises."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block, itself in a `deferred` one, a first signal raises too.

        For waits that may be long, where ending leaves nothing half done.
        """
        if self.requested:
            self.end_run()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    @property
    def requested(self) -> bool:
        """Whether a signal came while they were deferred."""
        return self._signum is not None

    def end_run(self) -> NoReturn:
        """Raise `Interrupted` for the deferred signal.

        With several ranks one of them may have got it alone; the others end as if by SIGTERM.
        """
        raise Interrupted(self._signum or signal.SIGTERM)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if not self._deferring or self.requested:
            raise Interrupted(signum)
        self._signum = signum
        if self._waiting:
            raise Interrupted(signum)
