"""What each stage of the loader did, so that a slow pipeline names its own bottleneck.

Two threads work ahead of the consumer: `reading` (read) and `packing` (decode, patchify, mask,
pack, copy). A thread that never waits is the bottleneck, and of its stages the one that works
longest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

Item = TypeVar("Item")

THREADS = {"reading": ("read",), "packing": ("decode", "patchify", "mask", "pack", "copy")}
"""The stages of each thread, in the order of the data."""
_KEPT_UP = 0.02
"""A consumer that waits for a smaller share of the time than this has a loader that keeps up."""


@dataclass(kw_only=True, slots=True)
class StageStats:
    """Totals of one stage since the loader was opened."""

    num_samples: int = 0
    """Pairs that went through, replacements included."""
    num_bytes: int = 0
    """Bytes that came out."""
    busy_s: float = 0.0
    """Seconds spent working; for `read` that is also waiting for the storage."""
    input_wait_s: float = 0.0
    """Seconds that its thread waited for the thread before it; of a thread's first stage only."""
    output_wait_s: float = 0.0
    """Seconds that its thread waited for room behind it; of a thread's last stage only."""
    num_replaced: int = 0
    """Visits whose sample failed here and was replaced, or left out in evaluation."""

    @contextmanager
    def working(self, num_samples: int) -> Iterator[None]:
        """Count the block's time and samples."""
        start = time.perf_counter()
        yield
        self.busy_s += time.perf_counter() - start
        self.num_samples += num_samples

    def timed_input(self, items: Iterator[Item]) -> Iterator[Item]:
        """Pass items on and count the time until each of them is there."""
        while True:
            start = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self.input_wait_s += time.perf_counter() - start
            yield item

    def timed_output(self, items: Iterator[Item]) -> Iterator[Item]:
        """Pass items on and count the time until each of them is taken."""
        for item in items:
            start = time.perf_counter()
            yield item
            self.output_wait_s += time.perf_counter() - start

    def since(self, earlier: StageStats) -> StageStats:
        """What came on top of an earlier state."""
        names = [each.name for each in fields(self)]
        return StageStats(**{name: getattr(self, name) - getattr(earlier, name) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A sample that was indexed as good and could not be read or decoded."""

    key: str
    """Its key in the index."""
    shard: str
    """Path of its shard."""
    reason: str
    """What the reader or the decoder said."""
    replaced_by: str
    """Key of the sample tried in its place at its latest visit; empty if it was left out."""

    @property
    def instead(self) -> str:
        """What is served in its place, for people."""
        return f"{self.replaced_by} comes in its place" if self.replaced_by else "left out"

    def __str__(self) -> str:
        return f"cannot use sample {self.key} of {self.shard} ({self.reason}): {self.instead}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bottleneck:
    """What holds the batches up."""

    thread: str
    """The thread that waited least: `reading` or `packing`; "" before any work."""
    stage: str
    """The stage of that thread that worked longest; "" before any work."""
    busy_share: float
    """Share of the thread's time in which it worked, 0 to 1."""
    stage_share: float
    """Share of the thread's work that is this stage's, 0 to 1."""
    keeps_up: bool
    """The consumer hardly waited: batches lay ready, and what is slow is behind the loader."""

    def __str__(self) -> str:
        if not self.stage:
            return "nothing was done yet"
        thread = f"the {self.thread} thread works {self.busy_share:.0%} of the time"
        stage = f"{self.stage} is {self.stage_share:.0%} of that"
        if self.keeps_up:
            return f"none, the loader keeps up ({thread}; {stage})"
        return f"{self.stage} ({thread}; {stage})"


@dataclass(kw_only=True, slots=True)
class LoaderStats:
    """Totals of a loader; read them at any time from any thread."""

    read: StageStats = field(default_factory=StageStats)
    """Image bytes out of the shards."""
    decode: StageStats = field(default_factory=StageStats)
    """Decode, crop and resize."""
    patchify: StageStats = field(default_factory=StageStats)
    """Cut the images into patches."""
    mask: StageStats = field(default_factory=StageStats)
    """Choose the visible patches; bytes are those of the flags."""
    pack: StageStats = field(default_factory=StageStats)
    """Gather the visible patches and the caption tokens."""
    copy: StageStats = field(default_factory=StageStats)
    """Hand the batch to the model's device. On CUDA it is the host's part, to pinned memory and
    into the queue; the transfer itself runs beside everything else. On a CPU nothing is copied."""
    wait_s: float = 0.0
    """Seconds that the consumer waited for a batch."""
    use_s: float = 0.0
    """Seconds between two of the consumer's requests: what it did with the batches."""
    num_missing_captions: int = 0
    """Visits served with the original text because the source drawn has none of the sample."""
    num_short_captions: int = 0
    """Visits served with the original text because the one drawn has too few words."""
    bad_samples: dict[int, BadSample] = field(default_factory=dict)
    """The bad samples by sample id."""

    @property
    def bytes_per_image(self) -> float:
        """Bytes that crossed to the model's device, or would on a CPU, for each pair."""
        return self.copy.num_bytes / max(self.copy.num_samples, 1)

    @property
    def num_replaced(self) -> int:
        """Visits whose sample was bad and replaced, or left out in evaluation."""
        return sum(stage.num_replaced for stage in self.stages().values())

    def stages(self) -> dict[str, StageStats]:
        """The stages by name, in the order of the data."""
        return {name: getattr(self, name) for names in THREADS.values() for name in names}

    def snapshot(self) -> LoaderStats:
        """The totals as they stand now; they do not move any more."""
        stages = {name: replace(stage) for name, stage in self.stages().items()}
        return replace(self, **stages, bad_samples=dict(self.bad_samples))

    def since(self, earlier: LoaderStats) -> LoaderStats:
        """What came on top of an earlier `snapshot`; bad samples are those of the whole time."""
        before = earlier.stages()
        return LoaderStats(
            **{name: stage.since(before[name]) for name, stage in self.stages().items()},
            wait_s=self.wait_s - earlier.wait_s,
            use_s=self.use_s - earlier.use_s,
            num_missing_captions=self.num_missing_captions - earlier.num_missing_captions,
            num_short_captions=self.num_short_captions - earlier.num_short_captions,
            bad_samples=dict(self.bad_samples),
        )

    def slowest(self) -> Bottleneck:
        """What holds the batches up: a thread, and the stage that it spends its time on."""
        stages = self.stages()
        busy = {
            thread: sum(stages[name].busy_s for name in names) for thread, names in THREADS.items()
        }
        shares = {
            thread: _share(busy[thread], _waited(names, stages))
            for thread, names in THREADS.items()
        }
        # Equal shares, as when steps are made one at a time: the one with more work.
        thread = max(THREADS, key=lambda name: (shares[name], busy[name]))
        if not busy[thread]:
            return Bottleneck(thread="", stage="", busy_share=0, stage_share=0, keeps_up=True)
        stage = max(THREADS[thread], key=lambda name: stages[name].busy_s)
        return Bottleneck(
            thread=thread,
            stage=stage,
            busy_share=shares[thread],
            stage_share=stages[stage].busy_s / busy[thread],
            keeps_up=self.use_s > 0 and _share(self.wait_s, self.use_s) < _KEPT_UP,
        )

    def bottleneck(self) -> str:
        """Name of the stage that holds the batches up, or would first; "" before any work."""
        return self.slowest().stage

    def lines(self) -> list[str]:
        """A table of the stages, a line each."""
        head = f"{'stage':9} {'samples':>9} {'MB out':>9} {'us/sample':>10} {'busy s':>8}"
        lines = [f"{head} {'wait in':>8} {'wait out':>8} {'replaced':>8}"]
        for name, stage in self.stages().items():
            each = 1e6 * stage.busy_s / max(stage.num_samples, 1)
            lines.append(
                f"{name:9} {stage.num_samples:9,} {stage.num_bytes / 1e6:9,.1f} {each:10,.0f} "
                f"{stage.busy_s:8.2f} {stage.input_wait_s:8.2f} {stage.output_wait_s:8.2f} "
                f"{stage.num_replaced:8,}"
            )
        lines += self.caption_lines()
        return lines

    def caption_lines(self) -> list[str]:
        """A line where captions were replaced by originals; none where none was."""
        if not (self.num_missing_captions or self.num_short_captions):
            return []
        return [
            f"original text served for {self.num_missing_captions:,} captions that are missing in "
            f"the source drawn and {self.num_short_captions:,} of too few words"
        ]


def _waited(names: tuple[str, ...], stages: dict[str, StageStats]) -> float:
    return sum(stages[name].input_wait_s + stages[name].output_wait_s for name in names)


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0 else 0.0
