"""What the loader's stages did: how long the consumer waited, and the name of the bottleneck.

Two threads work ahead of the consumer. A thread that never waits is the bottleneck, and of its
stages the one that works longest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
THREADS = {"reading": ("read",), "packing": ("decode", "patchify", "mask", "pack", "copy")}
_KEPT_UP = 0.02  # a consumer that waits for a smaller share of the time has a loader that keeps up


class Totals:
    """Counters that only grow."""

    def since(self, earlier: Self) -> Self:
        """What came on top of an earlier state; bad samples are those of the whole time."""

        def difference(now: Any, before: Any) -> Any:
            if isinstance(now, dict):
                return dict(now)
            return now.since(before) if isinstance(now, Totals) else now - before

        names = [each.name for each in fields(self)]  # pyright: ignore[reportArgumentType]
        pairs = {name: (getattr(self, name), getattr(earlier, name)) for name in names}
        return type(self)(**{name: difference(*pair) for name, pair in pairs.items()})

    def snapshot(self) -> Self:
        """The totals as they stand now; they do not move any more."""
        return self.since(type(self)())


@dataclass(kw_only=True)
class StageStats(Totals):
    """One stage. The first of a thread waits for input, the last for room after it."""

    num_samples: int = 0  # replacements included
    num_bytes: int = 0  # that came out
    busy_s: float = 0.0
    input_wait_s: float = 0.0
    output_wait_s: float = 0.0
    num_replaced: int = 0  # visits whose sample failed here; replaced, or left out in evaluation

    @contextmanager
    def working(self, num_samples: int) -> Iterator[None]:
        """Count the block's time and samples."""
        start = time.perf_counter()
        yield
        self.busy_s += time.perf_counter() - start
        self.num_samples += num_samples

    @property
    def wait_s(self) -> float:
        """Seconds that its thread waited, before it or after it."""
        return self.input_wait_s + self.output_wait_s


def timed(
    items: Iterator[Item], *, into: StageStats | None = None, out_of: StageStats | None = None
) -> Iterator[Item]:
    """Pass items on; count the time until each is there, and until each is taken."""
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        there = time.perf_counter()
        if into:
            into.input_wait_s += there - start
        yield item
        if out_of:
            out_of.output_wait_s += time.perf_counter() - there


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """A thread and its stage that hold the batches up; "" before any work."""

    thread: str = ""
    stage: str = ""
    busy_share: float = 0.0  # of the thread's time in which it worked
    stage_share: float = 0.0  # of that work
    keeps_up: bool = True  # batches lay ready: what is slow is behind the loader

    def __str__(self) -> str:
        if not self.stage:
            return "nothing was done yet"
        thread = f"the {self.thread} thread works {self.busy_share:.0%} of the time"
        told = f"({thread}; {self.stage} is {self.stage_share:.0%} of that)"
        return f"none, the loader keeps up {told}" if self.keeps_up else f"{self.stage} {told}"


@dataclass(kw_only=True)
class LoaderStats(Totals):
    """Totals of a loader; read them at any time from any thread."""

    read: StageStats = field(default_factory=StageStats)  # waiting for the storage included
    decode: StageStats = field(default_factory=StageStats)
    patchify: StageStats = field(default_factory=StageStats)
    mask: StageStats = field(default_factory=StageStats)
    pack: StageStats = field(default_factory=StageStats)
    copy: StageStats = field(default_factory=StageStats)  # on CUDA the host's part
    wait_s: float = 0.0  # that the consumer waited for a batch
    use_s: float = 0.0  # between two of its requests
    num_missing_captions: int = 0  # originals served as the source drawn has no text of the sample
    num_short_captions: int = 0  # originals served as the text drawn has too few words
    bad_samples: dict[int, Any] = field(default_factory=dict)  # `BadSample` by sample id

    @property
    def bytes_per_image(self) -> float:
        """Bytes that crossed to the model's device, or would on a CPU, for each pair."""
        return self.copy.num_bytes / max(self.copy.num_samples, 1)

    @property
    def num_replaced(self) -> int:
        """Visits whose sample was bad and replaced, or left out in evaluation."""
        return sum(each.num_replaced for each in self.stages().values())

    def stages(self) -> dict[str, StageStats]:
        """The stages by name, in the order of the data."""
        return {name: getattr(self, name) for names in THREADS.values() for name in names}

    def slowest(self) -> Bottleneck:
        """What holds the batches up: a thread, and the stage that it spends its time on."""
        stages = self.stages()
        busy = {t: sum(stages[name].busy_s for name in names) for t, names in THREADS.items()}
        shares = {
            t: _share(busy[t], sum(stages[name].wait_s for name in names))
            for t, names in THREADS.items()
        }
        # Equal shares, as when steps are made one at a time: the one with more work.
        thread = max(THREADS, key=lambda name: (shares[name], busy[name]))
        if not busy[thread]:
            return Bottleneck()
        name = max(THREADS[thread], key=lambda name: stages[name].busy_s)
        return Bottleneck(
            thread=thread,
            stage=name,
            busy_share=shares[thread],
            stage_share=stages[name].busy_s / busy[thread],
            keeps_up=self.use_s > 0 and _share(self.wait_s, self.use_s) < _KEPT_UP,
        )

    def caption_lines(self) -> list[str]:
        """A line where captions were replaced by originals; none where none was."""
        if not (self.num_missing_captions or self.num_short_captions):
            return []
        return [
            f"original text served for {self.num_missing_captions:,} captions that are missing in "
            f"the source drawn and {self.num_short_captions:,} of too few words"
        ]


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0 else 0.0
