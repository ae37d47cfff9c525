"""Does the order hold on thousands of ranks? Asked of the code that training runs.

Nothing here models the order: every id comes from `pipeline`. A rank is simulated by taking its
part of the global batch, a restart by building the order anew.

Shapes: B pairs of the global batch, W ranks, S samples of a pass, H shards of the set.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.order import Order, SampleOrder, Visits
from pipeline.window_order import WindowOrder

OrderKind = Literal["global", "window"]
_NUM_STEPS = 8
_NUM_TIMED = 20
_WHOLE_PASS = 20_000_000
"""A pass of no more samples than this is enumerated; of a larger one stretches are drawn."""
_DRAWN = 8_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderSize:
    """The set and how it is read."""

    num_samples: int
    """S."""
    samples_per_shard: int
    """Samples of a shard; the last one is shorter."""
    kind: OrderKind
    """Which order."""
    window_shards: int
    """window: shards that are mixed with each other."""
    seed: int
    """Of the order, and of what is drawn to check it."""

    def open(self) -> Order:
        """The order as a new process has it."""
        if self.kind == "global":
            return SampleOrder(self.num_samples, self.seed)
        return WindowOrder(self.shard_sizes, self.seed, self.window_shards)

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """[H] samples of each shard."""
        whole, rest = divmod(self.num_samples, self.samples_per_shard)
        sizes = np.full(whole + bool(rest), self.samples_per_shard, dtype=np.int64)
        if rest:
            sizes[-1] = rest
        return sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class OnceResult:
    """Whether a pass serves each sample once."""

    places: int
    """Places of the pass that were looked at."""
    whole_pass: bool
    """Whether those are all of it."""
    repeated: int
    """Samples that came twice among them; 0 is right."""
    expected_if_random: float
    """How many would, had every place drawn its sample at random: what a broken order shows."""


def check_once(size: OrderSize) -> OnceResult:
    """Look for a sample that a pass serves twice.

    Raises:
        ValueError: an id lies outside the set.
    """
    order, total = size.open(), size.num_samples
    rng = np.random.default_rng(size.seed)
    whole = total <= _WHOLE_PASS
    length = min(total, 1_000_000)
    if whole:
        starts = np.arange(0, total, length)
    else:
        slots = rng.choice(total // length, _DRAWN // length, replace=False)
        starts = np.sort(slots) * length
    served = np.concatenate([_places(order, start, length, total) for start in starts.tolist()])
    if served.min() < 0 or served.max() >= total:
        raise ValueError(f"the order serves ids {served.min()} to {served.max()} of {total}")
    pairs = len(served) * (len(served) - 1) / 2
    return OnceResult(
        places=len(served),
        whole_pass=whole,
        repeated=len(served) - len(np.unique(served)),
        expected_if_random=pairs / total,
    )


def _places(order: Order, start: int, length: int, total: int) -> NDArray[np.int64]:
    """Ids of the first pass from a multiple of `length` on, asked for as one global batch."""
    visits = order.visits(start // length, length)
    return visits.sample_ids[: total - start]


@dataclass(frozen=True, kw_only=True, slots=True)
class RanksResult:
    """Whether W ranks together serve what one would."""

    world_size: int
    """W."""
    batch_size: int
    """B, over all ranks."""
    steps: int
    """Steps that were looked at, all over the run."""
    differing: int
    """Steps whose global batch was another one, or was not cut evenly; 0 is right."""
    differing_after_resume: int
    """The same for a new process that goes on at the step on half as many ranks."""
    bytes_max_over_mean: float
    """Bytes of the rank with most to read in a step over those of an average one."""
    shards_per_rank: float
    """Shards that a rank reads from in a step, on average."""


def check_ranks(
    size: OrderSize, world_size: int, batch_size: int, sample_bytes: NDArray[np.float64]
) -> RanksResult:
    """Serve some steps by W ranks and compare with one process.

    Args:
        size: of the set.
        world_size: W; divides the batch.
        batch_size: B.
        sample_bytes: some samples' sizes in bytes, drawn from for every sample.
    """
    order = size.open()
    rng = np.random.default_rng(size.seed + world_size)
    steps = rng.integers(0, max(1, 3 * size.num_samples // batch_size), _NUM_STEPS).tolist()
    differing = after_resume = 0
    balance, shards = [], []
    for step in steps:
        alone = order.visits(step, batch_size)
        parts = _parts(order, step, batch_size, world_size)
        differing += not _same(alone, parts)
        resumed = _parts(size.open(), step, batch_size, max(1, world_size // 2))
        after_resume += not _same(alone, resumed)
        by_rank = np.stack([part.sample_ids for part in parts])
        loads = sample_bytes[by_rank % len(sample_bytes)].sum(axis=1)
        balance.append(loads.max() / loads.mean())
        shards += [len(np.unique(ids)) for ids in by_rank // size.samples_per_shard]
    return RanksResult(
        world_size=world_size,
        batch_size=batch_size,
        steps=len(steps),
        differing=differing,
        differing_after_resume=after_resume,
        bytes_max_over_mean=float(np.median(balance)),
        shards_per_rank=float(np.mean(shards)),
    )


def _parts(order: Order, step: int, batch_size: int, world_size: int) -> list[Visits]:
    batch = order.visits(step, batch_size)
    return [batch.part(rank, world_size) for rank in range(world_size)]


def _same(alone: Visits, parts: Sequence[Visits]) -> bool:
    even = len({len(part.sample_ids) for part in parts}) == 1
    ids = np.concatenate([part.sample_ids for part in parts])
    passes = np.concatenate([part.passes for part in parts])
    return even and bool((ids == alone.sample_ids).all() and (passes == alone.passes).all())


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadsResult:
    """What is fetched of a window by machines that each keep a cache of their own."""

    num_caches: int
    """Machines."""
    batch_size: int
    """B, over all machines."""
    steps: int
    """Steps of one window."""
    shards_per_cache: float
    """Shards of the window that a machine needs, on average."""
    times_read: float
    """Shards fetched by all machines over shards of the window."""


def check_window_reads(size: OrderSize, num_caches: int, batch_size: int) -> ReadsResult:
    """Follow all machines through one window.

    Args:
        size: of a set in window order.
        num_caches: machines; divides the batch.
        batch_size: B.
    """
    order = size.open()
    in_window = size.window_shards * size.samples_per_shard
    first = -(-in_window // batch_size)
    steps = range(first, max(first + 1, 2 * in_window // batch_size))
    needed: list[set[int]] = [set() for _ in range(num_caches)]
    for step in steps:
        for part, shards in zip(_parts(order, step, batch_size, num_caches), needed, strict=True):
            shards.update((part.sample_ids // size.samples_per_shard).tolist())
    fetched = sum(map(len, needed))
    return ReadsResult(
        num_caches=num_caches,
        batch_size=batch_size,
        steps=len(steps),
        shards_per_cache=fetched / num_caches,
        times_read=fetched / len(set().union(*needed)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CostResult:
    """What the order itself costs a rank."""

    open_s: float
    """Seconds to build it, median."""
    seek_ms: float
    """Milliseconds for the first step of a new order, anywhere in the run, median."""
    step_ms: float
    """Milliseconds for a step of the same order, median."""
    held_bytes: int
    """Bytes that the order keeps after a step."""
    batch_size: int
    """B."""


def measure_cost(size: OrderSize, batch_size: int) -> CostResult:
    """Time building the order, seeking, and stepping."""
    rng = np.random.default_rng(size.seed)
    opening, seeking, stepping = [], [], []
    for step in rng.integers(0, max(1, 3 * size.num_samples // batch_size), _NUM_TIMED).tolist():
        start = time.perf_counter()
        order = size.open()
        opened = time.perf_counter()
        order.visits(step, batch_size)
        sought = time.perf_counter()
        order.visits(step + 1, batch_size)
        stepping.append(time.perf_counter() - sought)
        seeking.append(sought - opened)
        opening.append(opened - start)
    return CostResult(
        open_s=float(np.median(opening)),
        seek_ms=1e3 * float(np.median(seeking)),
        step_ms=1e3 * float(np.median(stepping)),
        held_bytes=_held_bytes(size, batch_size),
        batch_size=batch_size,
    )


def _held_bytes(size: OrderSize, batch_size: int) -> int:
    tracemalloc.start()
    try:
        order = size.open()
        order.visits(0, batch_size)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
