"""Progress of work that takes long: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from tessera.report.numbers import duration

_EVERY_S = 10.0


class Progress:
    """How much is done of how much, and how long the rest will take; on stderr.

    An instance is called with the number of things done since the last call.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        *,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            what: the work, such as "encoding".
            unit: what is counted, such as "pictures".
            total: how many there are; None where that is not known yet.
            silent: say nothing, as processes other than the first.
            clock: seconds that only grow.
        """
        self.total = total
        self._what, self._unit, self._clock = what, unit, clock
        self._done = 0
        self._start = self._last_line = clock()
        is_bar = not silent and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, file=sys.stderr,
                         dynamic_ncols=True) if is_bar else None  # fmt: skip
        self._has_lines = not silent and not is_bar

    def __call__(self, count: int) -> None:
        """Add what was done."""
        self._done += count
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(count)
        elif self._has_lines and self._clock() - self._last_line >= _EVERY_S:
            self._last_line = self._clock()
            print(self._line(), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        """Nothing more than `__init__`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        if not self.total:
            return f"{self._what}: {self._done:,} {self._unit}"
        took = self._clock() - self._start
        left = max(0, self.total - self._done) * took / max(self._done, 1)
        share = min(1.0, self._done / self.total)
        return (
            f"{self._what}: {self._done:,} of {self.total:,} {self._unit} ({share:.0%}), "
            f"{duration(left)} left"
        )
