"""How a program begins and ends: Ctrl-C at any moment, and readers that go away, are no errors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

STOPPED = 130
"""Exit status after Ctrl-C."""


def begin(module: str) -> None:
    """Let Ctrl-C end the program at once while it imports what it needs.

    Args:
        module: `__name__` of the program; where it is only imported, nothing changes.
    """
    if module == "__main__":
        signal.signal(signal.SIGINT, _stop)


def run(main: Callable[[], int]) -> int:
    """Run a program's main function, in which Ctrl-C raises KeyboardInterrupt again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _stop(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(STOPPED)
