"""Look-alikes are found as if all pairs were compared."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tessera.pipeline.index.look_alikes import near_repeats


def by_all_pairs(hashes: list[int], max_distance: int) -> list[bool]:
    kept: list[int] = []
    dropped = []
    for value in hashes:
        near = any((value ^ other).bit_count() <= max_distance for other in kept)
        dropped.append(near)
        if not near:
            kept.append(value)
    return dropped


@st.composite
def clustered_hashes(draw: st.DrawFn) -> list[int]:
    """Hashes a few bits apart from a few centres, so that chains of look-alikes arise."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    flips = st.lists(st.integers(0, 63), max_size=4)
    members = draw(st.lists(st.tuples(st.sampled_from(centres), flips), max_size=25))
    hashes = []
    for centre, bits in members:
        for bit in bits:
            centre ^= 1 << bit
        hashes.append(centre)
    return hashes


@given(hashes=clustered_hashes(), max_distance=st.integers(0, 3))
def test_look_alikes_are_those_of_comparing_all_pairs(hashes: list[int], max_distance: int) -> None:
    found = near_repeats(np.array(hashes, dtype=np.uint64), max_distance)
    assert found.tolist() == by_all_pairs(hashes, max_distance)


@pytest.mark.parametrize("max_distance", [1, 2, 3])
def test_every_pair_of_bits_is_found(max_distance: int) -> None:
    """All ways to flip one or two bits, and many to flip three, of one hash."""
    rng = np.random.default_rng(max_distance)
    base = int(rng.integers(2**63))
    flips = {frozenset(rng.choice(64, max_distance, replace=False).tolist()) for _ in range(500)}
    for flip in flips:
        other = base ^ sum(1 << bit for bit in flip)
        assert near_repeats(np.array([base, other], np.uint64), max_distance).tolist() == [
            False,
            True,
        ]
        assert not near_repeats(np.array([base, other], np.uint64), max_distance - 1).any()
