"""An order that reads few shards at a time, for storage where jumping about is slow.

Each pass permutes the shards, cuts them into windows of some shards each, and permutes the samples
of each window. All of it is computed from (seed, pass, window); what is held is one number for each
shard, none for a sample.

The samples of one step are served in the order in which they lie in the window, not in the order in
which they were drawn: a rank, which takes a consecutive part of every step, then comes back to the
same few shards all through a window and need not fetch the others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from tessera.pipeline.counter_random import Purpose, keys
from tessera.pipeline.order import Cuts, EqualCuts, Passes, Visits, range_of_step
from tessera.pipeline.permutation import ROUNDS, permute


class _Pass(NamedTuple):
    """The shards of one pass, in the order in which they are read."""

    shards: NDArray[np.int64]
    """[S] numbers of the shards that hold a sample."""
    starts: NDArray[np.int64]
    """[S+1] how many samples come before each of them in the pass."""
    window_starts: NDArray[np.int64]
    """[W+1] how many samples come before each window in the pass."""
    shifts: NDArray[np.int64]
    """[H] of each shard, what leads from a place among the served rows to one in the pass."""


class WindowOrder:
    """A permutation of the set for every pass in which neighbours come from few shards."""

    def __init__(
        self,
        shard_sizes: npt.ArrayLike,
        seed: int,
        window_shards: int,
        rows: NDArray[np.integer] | None = None,
    ) -> None:
        """Prepare the order.

        Args:
            shard_sizes: [H] samples of each shard, in the order of the index.
            seed: the run's seed.
            window_shards: shards whose samples are mixed with each other.
            rows: [S] rows of the index that are served, ascending; None for all.

        Raises:
            ValueError: the set is empty, or a window holds no shard.
        """
        if window_shards < 1:
            raise ValueError(f"window_shards must be at least 1, got {window_shards}")
        first_rows = np.concatenate([[0], np.cumsum(shard_sizes, dtype=np.int64)])
        if not first_rows[-1] or (rows is not None and not len(rows)):
            raise ValueError("an order needs at least one sample")
        # First place of each shard among the served rows.
        self._first = first_rows if rows is None else np.searchsorted(rows, first_rows)
        self._rows = rows
        self.seed = seed
        self.window_shards = window_shards
        self.num_samples = int(first_rows[-1]) if rows is None else len(rows)
        """S, samples of one pass."""
        self._pass = lru_cache(maxsize=2)(self._make_pass)
        self._passes = Passes(self.num_samples, self._permute)

    def ids(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """Sample ids of the global batch of `step`: [batch_size] int64."""
        return self.visits(step, batch_size).sample_ids

    def visits(self, step: int, batch_size: int) -> Visits:
        """Sample ids and pass numbers of the global batch of `step`, shard after shard.

        Raises:
            ValueError: a negative step or an empty batch.
        """
        return self.visits_between(*range_of_step(step, batch_size), EqualCuts(batch_size))

    def visits_between(self, start: int, stop: int, cuts: Cuts) -> Visits:
        """As `visits`, of the positions `start` to `stop`, a part of one batch."""
        passes, chosen = self._passes.between(start, stop, cuts)
        for number in np.unique(passes).tolist():
            here = passes == number
            chosen[here] = self._in_reading_order(chosen[here], number)
        ids = chosen if self._rows is None else self._rows[chosen].astype(np.int64)
        return Visits(sample_ids=ids, passes=passes)

    def upcoming_shards(self, step: int, batch_size: int) -> list[int]:
        """Shards of the window that a step lies in and of the next one, the most urgent first."""
        return self.upcoming_shards_at(range_of_step(step, batch_size)[0])

    def upcoming_shards_at(self, position: int) -> list[int]:
        """As `upcoming_shards`, from a position of the endless sequence on."""
        number, place = divmod(position, self.num_samples)
        found: list[int] = []
        for _ in range(2):
            current = self._pass(number)
            window = int(np.searchsorted(current.window_starts, place, side="right")) - 1
            first = window * self.window_shards
            found += current.shards[first : first + self.window_shards].tolist()
            place = int(current.window_starts[window + 1])
            if place == self.num_samples:
                number, place = number + 1, 0
        return list(dict.fromkeys(found))

    def _make_pass(self, number: int) -> _Pass:
        counts = np.diff(self._first)
        filled = np.flatnonzero(counts)
        round_keys = keys(self.seed, number, np.arange(ROUNDS), Purpose.SHARD_ORDER)
        shards = filled[permute(np.arange(len(filled)), len(filled), round_keys)]
        starts = np.concatenate([[0], np.cumsum(counts[shards])])
        window_starts = np.append(starts[: -1 : self.window_shards], starts[-1])
        shifts = np.zeros_like(counts)
        shifts[shards] = starts[:-1] - self._first[shards]
        return _Pass(shards, starts, window_starts, shifts)

    def _in_reading_order(self, rows: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Places among the served rows, sorted by place in the pass."""
        shards = np.searchsorted(self._first, rows, side="right") - 1
        return rows[np.argsort(rows + self._pass(number).shifts[shards])]

    def _permute(self, places: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Places within a pass to places among the served rows."""
        current = self._pass(number)
        windows = np.searchsorted(current.window_starts, places, side="right") - 1
        mixed = np.empty_like(places)
        for window in np.unique(windows).tolist():
            here = windows == window
            start, stop = current.window_starts[window : window + 2].tolist()
            round_keys = keys(
                self.seed, number, window * ROUNDS + np.arange(ROUNDS), Purpose.WINDOW_ORDER
            )
            mixed[here] = start + permute(places[here] - start, stop - start, round_keys)
        slot = np.searchsorted(current.starts, mixed, side="right") - 1
        return self._first[current.shards[slot]] + mixed - current.starts[slot]
