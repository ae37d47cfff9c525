"""Where the time of a run goes, by the wall clock, added up over all its restarts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timeline:
    """Seconds by activity, in the order in which activities first happened."""

    def __init__(self, before: dict[str, float] | None = None) -> None:
        """Start from what earlier processes of the same run spent.

        Args:
            before: seconds by activity.
        """
        self.seconds: dict[str, float] = dict(before or {})

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Add the block's seconds to an activity."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(activity, time.perf_counter() - start)

    def add(self, activity: str, seconds: float) -> None:
        """Add seconds to an activity."""
        self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds
