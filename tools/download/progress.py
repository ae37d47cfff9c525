"""Live figures of a download: one bar on a terminal, a line every ten seconds anywhere else."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TextIO

from tqdm import tqdm

_LINE_S = 10.0
_FORMAT = "{percentage:3.0f}% {n_fmt} of {total_fmt} rows [{elapsed}, ETA {remaining}, {rate_fmt}]"


class _Lines:
    """Takes what tqdm writes over itself and writes whole lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write one state of the bar."""
        if text := text.strip():
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def flush(self) -> None:
        """Lines are flushed as they are written."""


class Progress:
    """What is done, how fast it goes and what fails."""

    def __init__(self, num_rows: int, num_done: int, stream: TextIO | None = None) -> None:
        """Begin a display."""
        self._stream = stream or sys.stderr
        live = self._stream.isatty()
        interval_s = 0.5 if live else _LINE_S
        self._bar = tqdm(
            total=num_rows,
            initial=num_done,
            unit="row",
            bar_format=_FORMAT + "{postfix}",
            file=self._stream if live else _Lines(self._stream),
            mininterval=interval_s,
            maxinterval=interval_s,
            miniters=0,
            dynamic_ncols=live,
            smoothing=0.05,
        )

    def show(self, rows: int, stored: int, causes: Counter[str]) -> None:
        """Say how far it is, if it is time for that."""
        parts = [f"{100 * stored / max(1, rows):.1f}% stored"]
        parts += [f"{count:,} {cause}" for cause, count in causes.most_common(3)]
        self._bar.set_postfix_str("; ".join(parts), refresh=False)
        self._bar.update(max(0, rows - self._bar.n))

    def note(self, text: str) -> None:
        """Write a message on a line of its own."""
        self._bar.clear()
        self._stream.write(f"{text}\n")
        self._bar.refresh()

    def close(self) -> None:
        """Leave the last state as it is."""
        self._bar.close()
