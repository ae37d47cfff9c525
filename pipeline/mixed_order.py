"""The order of several sets that are trained on together, each as often as its weight says.

An epoch holds q_i visits of set i: its weight times its samples, rounded. The sets are dealt out as
evenly as can be: visit v of set i is due at the share (v + 1/2) / q_i of an epoch, and the places
of an epoch follow the due times. So every batch holds its share of every set, to one pair or two.

Within a set the visits go on from epoch to epoch in the set's own endless order, pass after pass: a
weight of 2 serves every sample twice in an epoch, a weight of 1/2 every sample once in two epochs.

Shapes: M sets, q_i visits of set i and Q of all sets in an epoch, n visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.order import SampleOrder, Visits, range_of_step
from tessera.pipeline.window_order import WindowOrder


@dataclass(frozen=True, slots=True)
class Interleaving:
    """Which place of the endless sequence each visit of each set has, in closed form."""

    quotas: tuple[int, ...]
    """q_i, at least 1 each."""

    @property
    def epoch(self) -> int:
        """Q."""
        return sum(self.quotas)

    def places(self, number: int, visits: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] places in the endless sequence of some visits of set `number`, counted from 0."""
        own = self.quotas[number]
        epochs, visits = np.divmod(visits, own)
        before = visits.copy()
        for other, quota in enumerate(self.quotas):
            # Visits w of the other set that are due earlier: (2w + 1) / quota < (2v + 1) / own.
            twice = (2 * visits + 1) * quota - own
            if other < number:  # of those due at the same time the earlier set comes first
                before += twice // (2 * own) + 1
            elif other > number:
                before += -(-twice // (2 * own))
        return epochs * self.epoch + before

    def visits_before(self, number: int, place: int) -> int:
        """Visits of set `number` among the first `place` places."""
        own = self.quotas[number]
        epochs, rest = divmod(place, self.epoch)
        # No place is further from an even share than there are sets.
        near, reach = rest * own // self.epoch, len(self.quotas) + 1
        candidates = np.arange(max(0, near - reach), min(own, near + reach))
        earlier = int(np.count_nonzero(self.places(number, candidates) < rest))
        return epochs * own + max(0, near - reach) + earlier

    def most_in_batch(self, number: int, batch_size: int) -> int:
        """Most visits of set `number` that a batch may hold."""
        share = -(-batch_size * self.quotas[number] // self.epoch)
        return min(batch_size, share + len(self.quotas))


@dataclass(frozen=True, slots=True)
class _MixedCuts:
    """Where the visits of one set are cut by the batches of all; see `Cuts`."""

    interleaving: Interleaving
    number: int
    batch_size: int

    def __call__(self, position: int) -> tuple[int, int]:
        place = int(self.interleaving.places(self.number, np.array([position]))[0])
        first = place - place % self.batch_size
        return (
            self.interleaving.visits_before(self.number, first),
            self.interleaving.visits_before(self.number, first + self.batch_size),
        )


class MixedOrder:
    """The orders of several sets dealt out into one; see `pipeline.order.Order`."""

    def __init__(
        self,
        orders: Sequence[SampleOrder | WindowOrder],
        interleaving: Interleaving,
        first_ids: Sequence[int],
        first_shards: Sequence[int],
        seed: int,
    ) -> None:
        """Prepare.

        Args:
            orders: of each set alone, with different seeds.
            interleaving: visits of each set in an epoch.
            first_ids: what is added to the sample ids of each set.
            first_shards: what is added to the shard numbers of each set.
            seed: of the run, for what is drawn for a sample.
        """
        self.seed = seed
        self.num_samples = interleaving.epoch
        """Q, visits of an epoch."""
        self._orders = tuple(orders)
        self._interleaving = interleaving
        self._first_ids = tuple(first_ids)
        self._first_shards = tuple(first_shards)

    def visits(self, step: int, batch_size: int) -> Visits:
        """Sample ids of all sets, and the pass of its own set that each visit belongs to.

        Raises:
            ValueError: a negative step or an empty batch.
        """
        start, stop = range_of_step(step, batch_size)
        sample_ids, passes = (np.empty(batch_size, dtype=np.int64) for _ in range(2))
        for number, order in enumerate(self._orders):
            first, last = (self._interleaving.visits_before(number, p) for p in (start, stop))
            slots = self._interleaving.places(number, np.arange(first, last)) - start
            cuts = _MixedCuts(self._interleaving, number, batch_size)
            own = order.visits_between(first, last, cuts)
            sample_ids[slots] = own.sample_ids + self._first_ids[number]
            passes[slots] = own.passes
        return Visits(sample_ids=sample_ids, passes=passes)

    def upcoming_shards(self, step: int, batch_size: int) -> list[int]:
        """Those of each set in turn, the most urgent first."""
        start, _ = range_of_step(step, batch_size)
        wanted = [
            [
                first + shard
                for shard in order.upcoming_shards_at(
                    self._interleaving.visits_before(number, start)
                )
            ]
            for number, (order, first) in enumerate(
                zip(self._orders, self._first_shards, strict=True)
            )
        ]
        return [shard for shard in chain(*zip_longest(*wanted)) if shard is not None]
