"""Which sample comes when, computed from (seed, step) and never stored.

The samples of a run form one endless sequence of positions; position `p` lies in pass
`p // S`, where S is the number of samples served, and each pass is a permutation of all of them.
Step `k` of a run with global batch `B` takes positions `k*B .. k*B + B - 1`, so a batch may
straddle two passes, nothing is ever dropped, and one integer resumes a run on any number of ranks.

A batch that straddles two passes never holds a sample twice: `Passes` lets the later visit wait for
the next batch. That, too, follows from the position and the cuts between batches alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.counter_random import Purpose, keys
from tessera.pipeline.permutation import ROUNDS, permute

_NONE = np.empty(0, dtype=np.int64)
_MOST_HEADS = 8
"""Starts of passes that are remembered; any of them can be computed again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visits:
    """The visits of one step: which sample, and for the how many-th time."""

    sample_ids: NDArray[np.int64]
    """[B] rows of the index."""
    passes: NDArray[np.int64]
    """[B] how many whole passes came before each visit."""

    def part(self, rank: int, world_size: int) -> Visits:
        """The consecutive share of this batch that belongs to `rank`."""
        local = len(self.sample_ids) // world_size
        return self.take(slice(rank * local, (rank + 1) * local))

    def take(self, places: NDArray[np.int64] | slice) -> Visits:
        """Those at some places."""
        return Visits(sample_ids=self.sample_ids[places], passes=self.passes[places])

    def with_others(self, places: NDArray[np.int64], others: Visits) -> Visits:
        """The same, but for others at some places."""
        changed = Visits(sample_ids=self.sample_ids.copy(), passes=self.passes.copy())
        changed.sample_ids[places], changed.passes[places] = others.sample_ids, others.passes
        return changed


class Cuts(Protocol):
    """Where a sequence of positions is cut into batches. Equal cuts compare equal."""

    def __call__(self, position: int) -> tuple[int, int]:
        """The first position of the batch that holds `position`, and that of the next batch."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class EqualCuts:
    """Batches of one size."""

    batch_size: int

    def __call__(self, position: int) -> tuple[int, int]:
        """See `Cuts`."""
        first = position - position % self.batch_size
        return first, first + self.batch_size


class Order(Protocol):
    """Which sample comes when."""

    seed: int
    """The run's seed."""
    num_samples: int
    """S, samples of one pass."""

    def visits(self, step: int, batch_size: int) -> Visits:
        """Sample ids and pass numbers of the global batch of a step."""
        ...

    def upcoming_shards(self, step: int, batch_size: int) -> list[int]:
        """Shards worth fetching for a step and those behind it, the most urgent first."""
        ...


class SampleOrder:
    """A true permutation of the set for every pass, evaluated at any point in O(1) memory.

    The set is the whole index or the rows of it that a selection keeps. Ids are rows of the index
    in both cases, and a selection of all rows has the order of the whole index.
    """

    def __init__(
        self, num_samples: int, seed: int, rows: NDArray[np.integer] | None = None
    ) -> None:
        """Prepare the order.

        Args:
            num_samples: samples of the index, at least 1.
            seed: the run's seed.
            rows: [S] rows of the index that are served, each once; None for all. Kept as it is,
                so a memory-mapped array stays one.

        Raises:
            ValueError: the set is empty, or a row is none of the index.
        """
        if num_samples < 1 or (rows is not None and not len(rows)):
            raise ValueError(f"an order needs at least one sample, got num_samples={num_samples}")
        if rows is not None and not 0 <= rows.min() <= rows.max() < num_samples:
            raise ValueError(
                f"rows {rows.min()} to {rows.max()} are not all in an index of {num_samples}"
            )
        self.num_samples = num_samples if rows is None else len(rows)
        """S, samples of one pass."""
        self.seed = seed
        self._rows = rows
        self._passes = Passes(self.num_samples, self._permute)

    def ids(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """Sample ids of the global batch of `step`: [batch_size] int64."""
        return self.visits(step, batch_size).sample_ids

    def upcoming_shards(self, step: int, batch_size: int) -> list[int]:
        """None in particular: every batch reads all over the set."""
        return []

    def upcoming_shards_at(self, position: int) -> list[int]:
        """As `upcoming_shards`, from a position of the endless sequence on."""
        del position
        return []

    def visits(self, step: int, batch_size: int) -> Visits:
        """Sample ids and pass numbers of the global batch of `step`.

        Args:
            step: optimiser step, from 0.
            batch_size: pairs in the global batch, over all ranks. No batch holds a sample twice
                unless it is larger than the set.

        Raises:
            ValueError: a negative step or an empty batch.
        """
        return self.visits_between(*range_of_step(step, batch_size), EqualCuts(batch_size))

    def visits_between(self, start: int, stop: int, cuts: Cuts) -> Visits:
        """Sample ids and pass numbers of the positions `start` to `stop`, a part of one batch."""
        passes, sample_ids = self._passes.between(start, stop, cuts)
        if self._rows is not None:
            sample_ids = self._rows[sample_ids].astype(np.int64)
        return Visits(sample_ids=sample_ids, passes=passes)

    def _permute(self, places: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        round_keys = keys(self.seed, number, np.arange(ROUNDS), Purpose.ORDER)
        return permute(places, self.num_samples, round_keys)


class Passes:
    """Permutations of a set one after the other, cut into batches without a repeated sample.

    Where a batch holds the last places of one pass and the first places of the next, some samples
    may be in both. Their later visits change places with the first visits of the next batch whose
    samples are not in the batch either. So each pass stays a permutation, and only a batch that
    straddles two passes and the one after it differ from the plain permutations.

    A batch of more samples than the set has is left as it is.
    """

    def __init__(
        self, size: int, permute: Callable[[NDArray[np.int64], int], NDArray[np.int64]]
    ) -> None:
        """Prepare.

        Args:
            size: S, samples of one pass.
            permute: where the permutation of a pass sends some of its places.
        """
        self._size = size
        self._permute = permute
        self._heads: dict[tuple[Cuts, int], NDArray[np.int64]] = {}

    def between(
        self, start: int, stop: int, cuts: Cuts
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pass numbers and samples, 0 .. S - 1, of the positions `start` to `stop`."""
        passes, places = np.divmod(np.arange(start, stop, dtype=np.int64), self._size)
        samples = np.empty_like(places)
        for number in np.unique(passes).tolist():
            here = passes == number
            samples[here] = self._samples(places[here], number, cuts)
        return passes, samples

    def _samples(self, places: NDArray[np.int64], number: int, cuts: Cuts) -> NDArray[np.int64]:
        head = self._head(number, cuts) if places[0] < self._straddled(number, cuts)[1] else _NONE
        return self._with_head(places, number, head)

    def _with_head(
        self, places: NDArray[np.int64], number: int, head: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        samples = self._permute(places, number)
        moved = places < len(head)
        samples[moved] = head[places[moved]]
        return samples

    def _straddled(self, number: int, cuts: Cuts) -> tuple[int, int]:
        """Places of the pass before in the batch that holds the start of a pass, and its size.

        Both are 0 where a batch begins with the pass, or holds more samples than the set has.
        """
        border = number * self._size
        first, after = cuts(border)
        if first == border or after - first > self._size:
            return 0, 0
        return border - first, after - first

    def _head(self, number: int, cuts: Cuts) -> NDArray[np.int64]:
        """The first samples of a pass, as many as the batch that holds its start has in all."""
        first = number
        # In a set of less than two batches the end of the pass before was changed as well.
        while (cuts, first) not in self._heads and self._rests_on_head_before(first, cuts):
            first -= 1
        head = self._heads.get((cuts, first), _NONE)
        for each in range(first if not len(head) else first + 1, number + 1):
            head = self._repaired(each, head, cuts)
        if len(self._heads) > _MOST_HEADS:
            self._heads = {}  # a new one: another thread may be reading the old one
        self._heads[cuts, number] = head
        return head

    def _rests_on_head_before(self, number: int, cuts: Cuts) -> bool:
        num_before, _ = self._straddled(number, cuts)
        return bool(num_before) and (self._size - num_before < self._straddled(number - 1, cuts)[1])

    def _repaired(
        self, number: int, head_before: NDArray[np.int64], cuts: Cuts
    ) -> NDArray[np.int64]:
        num_before, size = self._straddled(number, cuts)
        last = np.arange(self._size - num_before, self._size)
        head = self._permute(np.arange(size), number)
        repeated = np.isin(head, self._with_head(last, number - 1, head_before))
        here = size - num_before
        early = np.flatnonzero(repeated[:here])
        late = here + np.flatnonzero(~repeated[here:])[: len(early)]
        head[early], head[late] = head[late], head[early]
        return head


def range_of_step(step: int, batch_size: int) -> tuple[int, int]:
    """First position of a step's global batch, and that of the next step's.

    Raises:
        ValueError: a negative step or an empty batch.
    """
    if step < 0 or batch_size < 1:
        raise ValueError(f"need step >= 0 and batch_size >= 1, got {step} and {batch_size}")
    return step * batch_size, (step + 1) * batch_size
