"""Which sample comes when, computed from (seed, step) and never stored.

The samples of a run form one endless sequence of positions; position `p` lies in pass
`p // num_samples`, and each pass is a permutation of the whole set. Step `k` of a run with global
batch `B` takes positions `k*B .. k*B + B - 1`, so a batch may straddle two passes, nothing is ever
dropped, and one integer resumes a run on any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.counter_random import Purpose, keys, mix

_ROUNDS = 6


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
        here = slice(rank * local, (rank + 1) * local)
        return Visits(sample_ids=self.sample_ids[here], passes=self.passes[here])


class SampleOrder:
    """A true permutation of the whole set for every pass, evaluated at any point in O(1) memory.

    The permutation is a Feistel network over the smallest even number of bits that covers the set,
    walked until it lands inside it (cycle walking; Black and Rogaway, CT-RSA 2002).
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        """Prepare the order.

        Args:
            num_samples: size of the set, at least 1.
            seed: the run's seed.

        Raises:
            ValueError: the set is empty.
        """
        if num_samples < 1:
            raise ValueError(f"an order needs at least one sample, got num_samples={num_samples}")
        self.num_samples = num_samples
        self.seed = seed
        self._half_bits = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
        self._half_mask = (np.uint64(1) << self._half_bits) - np.uint64(1)

    def ids(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """Sample ids of the global batch of `step`: [batch_size] int64."""
        return self.visits(step, batch_size).sample_ids

    def visits(self, step: int, batch_size: int) -> Visits:
        """Sample ids and pass numbers of the global batch of `step`.

        Args:
            step: optimiser step, from 0.
            batch_size: pairs in the global batch, over all ranks.

        Raises:
            ValueError: a negative step or an empty batch.
        """
        if step < 0 or batch_size < 1:
            raise ValueError(f"need step >= 0 and batch_size >= 1, got {step} and {batch_size}")
        positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        passes, places = np.divmod(positions, self.num_samples)
        sample_ids = np.empty_like(positions)
        for number in range(int(passes[0]), int(passes[-1]) + 1):
            here = passes == number
            sample_ids[here] = self._permute(places[here], number)
        return Visits(sample_ids=sample_ids, passes=passes)

    def _permute(self, places: NDArray[np.int64], pass_number: int) -> NDArray[np.int64]:
        round_keys = keys(self.seed, pass_number, np.arange(_ROUNDS), Purpose.ORDER)
        result = self._feistel(places.astype(np.uint64), round_keys)
        outside = result >= np.uint64(self.num_samples)
        while outside.any():
            result[outside] = self._feistel(result[outside], round_keys)
            outside = result >= np.uint64(self.num_samples)
        return result.astype(np.int64)

    def _feistel(
        self, value: NDArray[np.uint64], round_keys: NDArray[np.uint64]
    ) -> NDArray[np.uint64]:
        left, right = value >> self._half_bits, value & self._half_mask
        for round_key in round_keys:
            left, right = right, left ^ (mix(right + round_key) & self._half_mask)
        return (left << self._half_bits) | right
