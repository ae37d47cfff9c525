"""What each stage of the loader did, so that a slow pipeline names its own bottleneck."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class StageStats:
    """Totals of one stage since the loader was opened."""

    num_samples: int = 0
    """Pairs that went through."""
    num_bytes: int = 0
    """Bytes that came out."""
    busy_s: float = 0.0
    """Seconds spent working, waits for neighbours excluded."""

    @contextmanager
    def working(self, num_samples: int) -> Iterator[None]:
        """Count the block's time and samples."""
        start = time.perf_counter()
        yield
        self.busy_s += time.perf_counter() - start
        self.num_samples += num_samples


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A sample that was indexed as good and could not be read or decoded."""

    key: str
    """Its key in the index."""
    shard: str
    """Path of its shard."""
    reason: str
    """What the reader or the decoder said."""


@dataclass(kw_only=True, slots=True)
class LoaderStats:
    """Totals of a loader; read them at any time from any thread."""

    read: StageStats = field(default_factory=StageStats)
    """Image bytes out of the shards."""
    decode: StageStats = field(default_factory=StageStats)
    """Decode, crop and resize."""
    mask: StageStats = field(default_factory=StageStats)
    """Patchify and choose the visible patches."""
    pack: StageStats = field(default_factory=StageStats)
    """Gather the visible patches and the caption tokens."""
    wait_s: float = 0.0
    """Seconds that the consumer waited for a batch."""
    num_replaced: int = 0
    """Visits whose sample was bad and replaced, or left out in evaluation."""
    bad_samples: dict[int, BadSample] = field(default_factory=dict)
    """The bad samples by sample id."""

    def stages(self) -> dict[str, StageStats]:
        """The stages by name, in the order of the data."""
        return {"read": self.read, "decode": self.decode, "mask": self.mask, "pack": self.pack}

    def bottleneck(self) -> str:
        """Name of the stage that worked longest."""
        return max(self.stages().items(), key=lambda item: item[1].busy_s)[0]
