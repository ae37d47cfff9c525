"""Where the time of each step goes, and a word when one takes far longer than the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

from tessera.training.metrics import DEVICE, StepRecord
from tessera.training.timeline import Timeline

DATA = "waiting for data"
"""Part of a step until its batch is there."""
RANKS = "waiting for other ranks"
"""Part of a step in which the hosts of all ranks agree on something."""
_SHARED = ("backward", DEVICE, RANKS)
"""Parts in which one rank may wait for another."""
_ENOUGH = 10
"""Steps before the median says anything."""
_MEMORY = 200
"""Steps that the median is taken over."""


class StepClock:
    """Cuts the time of a run into steps without a gap, and each step into activities."""

    def __init__(self, timeline: Timeline) -> None:
        """Start the first step.

        Args:
            timeline: what it gains during a step are the parts of that step.
        """
        self._timeline = timeline
        self.restart()

    def restart(self) -> None:
        """Let the next step begin now."""
        self._start = time.perf_counter()
        self._before = dict(self._timeline.seconds)

    def lap(self) -> tuple[float, dict[str, float]]:
        """End a step, and begin the next.

        The wait for the device is left out: it comes once for many steps, and the log that waits
        shares it out among them.

        Returns:
            Its seconds, and those of each activity.
        """
        seconds = time.perf_counter() - self._start
        gained = {
            name: total - self._before.get(name, 0.0)
            for name, total in self._timeline.seconds.items()
        }
        self.restart()
        seconds -= gained.pop(DEVICE, 0.0)
        return seconds, {name: part for name, part in gained.items() if part > 0}


class SlowSteps:
    """Says why a step took many times the median, and not too often."""

    def __init__(
        self,
        factor: float,
        *,
        world_size: int = 1,
        pause_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without a memory.

        Args:
            factor: times the median that a step must take.
            world_size: ranks of the run; with several, some parts hold the wait for the slowest.
            pause_s: seconds between two messages.
            clock: tells the seconds.
        """
        self._factor = factor
        self._world_size = world_size
        self._pause_s = pause_s
        self._clock = clock
        self._recent: deque[StepRecord] = deque(maxlen=_MEMORY)
        self._told_at: float | None = None
        self._untold = 0

    def explain(self, records: list[StepRecord]) -> str | None:
        """Look at the steps since the last call.

        Returns:
            A message on the slowest of them if it is slow and the last message is long ago; those
            that are kept back are counted in the next one.
        """
        slow: list[tuple[StepRecord, str]] = []
        for record in records:
            usual = median(r.step_s for r in self._recent) if len(self._recent) >= _ENOUGH else 0.0
            if usual and record.step_s > self._factor * usual:
                slow.append((record, self._reason(record, usual)))
            self._recent.append(record)
        now = self._clock()
        if not slow or (self._told_at is not None and now - self._told_at < self._pause_s):
            self._untold += len(slow)
            return None
        others = self._untold + len(slow) - 1
        self._told_at, self._untold = now, 0
        message = max(slow, key=lambda item: item[0].step_s)[1]
        return message + (f"; {others} more slow steps since the last such line" if others else "")

    def _reason(self, record: StepRecord, usual: float) -> str:
        extra = {
            name: seconds - median(r.parts_s.get(name, 0.0) for r in self._recent)
            for name, seconds in record.parts_s.items()
        }
        extra["something that is not timed (this machine may be busy)"] = (
            record.step_s - usual - sum(extra.values())
        )
        name = max(extra, key=lambda part: extra[part])
        hint = ""
        if name == DATA and record.data_bottleneck:
            hint = f", the loader by its stage {record.data_bottleneck}"
        elif name in _SHARED and self._world_size > 1:
            hint = (
                f", which with {self._world_size} ranks includes the wait for the slowest of them"
            )
        return (
            f"step {record.step} took {record.step_s:.2f} s, {record.step_s / usual:.0f} times the "
            f"median: {extra[name]:.2f} s more than usual went into {name}{hint}"
        )
