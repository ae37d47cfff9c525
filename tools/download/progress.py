"""Live figures of a download: one line that is written over, or one now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import TextIO

from tools.download.finished import ShardState

_LOG_INTERVAL_S = 60.0
_RATE_WINDOW_S = 900.0
_WIDTH = 150


class Progress:
    """What is done, how fast it goes and what fails."""

    def __init__(self, num_rows: int, stream: TextIO | None = None) -> None:
        """Begin a display.

        Args:
            num_rows: Rows of the whole table.
            stream: Where lines go; standard error by default.
        """
        self._num_rows = num_rows
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._last_s = -math.inf
        self._points: list[tuple[float, int, int]] = []

    def show(self, finished: Mapping[int, ShardState], growing_bytes: int = 0) -> None:
        """Write the line if it is time for one.

        Args:
            finished: Shards that are done, by number.
            growing_bytes: Bytes of the shards that are being written.
        """
        now = time.monotonic()
        rows = sum(state.num_rows for state in finished.values())
        stored = sum(state.tar_bytes for state in finished.values()) + growing_bytes
        if not self._points or self._points[-1][1:] != (rows, stored):
            self._points.append((now, rows, stored))
        while self._points[0][0] < now - _RATE_WINDOW_S and len(self._points) > 2:
            self._points.pop(0)
        if not self._live and now - self._last_s < _LOG_INTERVAL_S:
            return
        self._last_s = now
        line = self.line(finished, now, rows, stored)
        if self._live:
            self._stream.write(f"\r{line[:_WIDTH]:<{_WIDTH}}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Write a message on a line of its own."""
        self._stream.write(f"\r{'':<{_WIDTH}}\r{text}\n" if self._live else f"{text}\n")
        self._stream.flush()

    def end(self, finished: Mapping[int, ShardState]) -> None:
        """Write the last line, whenever the one before was."""
        self._last_s = -math.inf
        self.show(finished)
        if self._live:
            self._stream.write("\n")
            self._stream.flush()

    def line(self, finished: Mapping[int, ShardState], now: float, rows: int, stored: int) -> str:
        """Return the line for a moment."""
        successes = sum(state.num_successes for state in finished.values())
        causes: Counter[str] = Counter()
        for state in finished.values():
            causes.update(state.failures)
        parts = [f"{rows:,} of {self._num_rows:,} rows"]
        if rows:
            parts.append(f"{100 * successes / rows:.1f}% stored")
        before, rows_before, stored_before = self._points[0]
        elapsed_s = now - before
        if elapsed_s > 0 and rows > rows_before:
            rate = (rows - rows_before) / elapsed_s
            parts.append(f"{rate * (successes / rows):.0f} images/s")
            parts.append(f"ETA {clock((self._num_rows - rows) / rate)}")
        if elapsed_s > 0 and stored > stored_before:
            parts.insert(-1, f"{(stored - stored_before) / elapsed_s / 1e6:.1f} MB/s")
        if causes:
            top = ", ".join(f"{cause} {count:,}" for cause, count in causes.most_common(3))
            parts.append(f"failed: {top}")
        return " | ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
