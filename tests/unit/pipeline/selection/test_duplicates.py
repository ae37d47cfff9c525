"""The first of each value stays, exactly; look-alikes are found as if all pairs were compared."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pipeline.index import Index
from pipeline.selection import duplicates
from pipeline.selection.columns import Columns
from pipeline.selection.duplicates import near_repeats, occurring_more_than, repeats

ALL = np.arange(96)


@pytest.fixture
def columns(index: Index) -> Columns:
    return Columns(index, "caption")


def test_the_first_of_equal_values_is_kept(columns: Columns) -> None:
    assert np.flatnonzero(repeats(columns, "sha256", ALL)).tolist() == list(range(1, 10))
    assert np.flatnonzero(repeats(columns, "dhash", ALL)).tolist() == list(range(1, 96, 2))
    assert not repeats(columns, "key", ALL).any()


def test_only_the_rows_given_count(columns: Columns) -> None:
    found = repeats(columns, "sha256", np.array([3, 5, 20]))
    assert found.tolist() == [False, True, False]


def test_texts_are_compared_and_not_only_their_hashes(
    columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hashes that all collide the answer is the same."""

    def colliding(values: object, *_: object) -> np.ndarray:
        return np.zeros(len(values), dtype=np.uint64)  # pyright: ignore[reportArgumentType]

    expected = {name: repeats(columns, name, ALL) for name in ("sha256", "shard", "text")}
    monkeypatch.setattr(duplicates, "hash_values", colliding)
    for name, found in expected.items():
        assert (repeats(columns, name, ALL) == found).all(), name
    assert not repeats(columns, "key", ALL).any()


def test_missing_values_are_no_repeats(columns: Columns) -> None:
    """Row 0 has no url; 'shard' is the same for 32 rows."""
    assert not repeats(columns, "url", np.array([0, 0, 1])).any()
    assert occurring_more_than(columns, "shard", ALL, 31).all()
    assert not occurring_more_than(columns, "shard", ALL, 32).any()


def test_values_that_come_too_often_go_altogether(columns: Columns) -> None:
    found = occurring_more_than(columns, "sha256", ALL, 9)
    assert np.flatnonzero(found).tolist() == list(range(10))
    assert not occurring_more_than(columns, "sha256", ALL, 10).any()


def test_fractions_have_no_repeats(columns: Columns) -> None:
    with pytest.raises(ValueError, match="'score' cannot be used"):
        repeats(columns, "score", ALL)


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


def test_a_value_is_counted_by_its_occurrences(columns: Columns) -> None:
    rows = np.array([1, 2, 3, 11, 12])
    texts = [bytes(h) for h in columns.index.column("sha256").take(rows).to_pylist()]
    often = Counter(texts)
    expected = [often[text] > 2 for text in texts]
    assert occurring_more_than(columns, "sha256", rows, 2).tolist() == expected
