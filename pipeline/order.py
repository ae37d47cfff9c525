"""Which sample comes when, computed from (seed, step) and never stored.

The samples of a run form one endless sequence of positions; position `p` lies in pass
`p // S`, where S is the number of samples served, and each pass is a permutation of all of them.
Step `k` of a run with global batch `B` takes positions `k*B .. k*B + B - 1`, so a batch may
straddle two passes, nothing is ever dropped, and one integer resumes a run on any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.counter_random import Purpose, keys
from pipeline.permutation import ROUNDS, permute


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

    def ids(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """Sample ids of the global batch of `step`: [batch_size] int64."""
        return self.visits(step, batch_size).sample_ids

    def upcoming_shards(self, step: int, batch_size: int) -> list[int]:
        """None in particular: every batch reads all over the set."""
        return []

    def visits(self, step: int, batch_size: int) -> Visits:
        """Sample ids and pass numbers of the global batch of `step`.

        Args:
            step: optimiser step, from 0.
            batch_size: pairs in the global batch, over all ranks.

        Raises:
            ValueError: a negative step or an empty batch.
        """
        passes, places = positions_of_step(step, batch_size, self.num_samples)
        sample_ids = np.empty_like(places)
        for number in np.unique(passes).tolist():
            here = passes == number
            round_keys = keys(self.seed, number, np.arange(ROUNDS), Purpose.ORDER)
            sample_ids[here] = permute(places[here], self.num_samples, round_keys)
        if self._rows is not None:
            sample_ids = self._rows[sample_ids].astype(np.int64)
        return Visits(sample_ids=sample_ids, passes=passes)


def positions_of_step(
    step: int, batch_size: int, num_samples: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pass number and place within the pass of each slot of a step's global batch.

    Args:
        step: optimiser step, from 0.
        batch_size: pairs in the global batch, over all ranks.
        num_samples: samples of one pass.

    Raises:
        ValueError: a negative step or an empty batch.
    """
    if step < 0 or batch_size < 1:
        raise ValueError(f"need step >= 0 and batch_size >= 1, got {step} and {batch_size}")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    passes, places = np.divmod(positions, num_samples)
    return passes, places
