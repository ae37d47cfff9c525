"""A key falls in the same part on every machine, in every index, whatever else is there."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from tessera.pipeline.index.split import hash_values, parse_parts, part_numbers

PARTS = parse_parts(["train=0.99", "heldout=0.01"])


def part_of(keys: list[str], parts: list = PARTS, seed: int = 0) -> list[int]:
    hashes = hash_values(pa.array(keys, pa.large_string()), "tessera-split", seed)
    return part_numbers(hashes, parts).tolist()


@given(keys=st.lists(st.text(max_size=12), min_size=1), seed=st.integers(0, 2**63 - 1))
def test_a_part_is_a_function_of_the_key_alone(keys: list[str], seed: int) -> None:
    together = part_of(keys, seed=seed)
    assert together == [part_of([key], seed=seed)[0] for key in keys]
    assert together[::-1] == part_of(keys[::-1], seed=seed)


def test_the_split_is_the_one_that_is_documented() -> None:
    """Anyone can say in which part a key falls; a change here would leak held-out samples."""
    keys = [f"{n:09d}" for n in range(2000)]
    expected = []
    for key in keys:
        digest = hashlib.blake2b(
            key.encode(), digest_size=8, salt=(7).to_bytes(8, "little"), person=b"tessera-split"
        ).digest()
        expected.append(int(int.from_bytes(digest, "little") >= 0.99 * 2**64))
    assert part_of(keys, seed=7) == expected
    assert [n for n, part in enumerate(part_of(keys, seed=0)) if part][:3] == [41, 163, 217]


def test_shares_are_kept_and_seeds_differ() -> None:
    keys = [f"{n:09d}" for n in range(50_000)]
    first, other = (np.array(part_of(keys, seed=seed)) for seed in (0, 1))
    for found in (first, other):
        assert 400 < found.sum() < 600  # 500 expected, standard deviation 22
    assert (first & other).sum() < 30  # 5 expected


def test_a_larger_heldout_part_contains_the_smaller() -> None:
    keys = [f"{n:09d}" for n in range(5000)]
    small = np.array(part_of(keys))
    large = np.array(part_of(keys, parse_parts(["train=0.9", "heldout=0.1"])))
    assert small.sum() < large.sum()
    assert (large[small == 1] == 1).all()


def test_numbers_hash_as_their_digits() -> None:
    as_numbers = pa.array([0, 5, 123456789])
    texts = pa.array(["0", "5", "123456789"], pa.large_string())
    assert (hash_values(as_numbers, "join") == hash_values(texts, "join")).all()


def test_edges_belong_to_the_part_that_begins_there() -> None:
    quarters = parse_parts([f"p{n}=0.25" for n in range(4)])
    edges = [n * 2**62 for n in range(4)]
    hashes = [edge + step for edge in edges for step in (0, 1, 2**62 - 1)]
    expected = [n for n in range(4) for _ in range(3)]
    assert part_numbers(np.array(hashes, dtype=np.uint64), quarters).tolist() == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train=0.9"], "at least two parts"),
        (["a=0.5", "a=0.5"], "different names"),
        (["a=0.5", "b=0.4"], "add up to 1"),
        (["a=1.5", "b=-0.5"], "above 0"),
        (["a=half", "b=0.5"], "NAME=SHARE"),
        (["a", "b=1"], "NAME=SHARE"),
        (["a=1/0", "b=1"], "NAME=SHARE"),
        (["../a=0.5", "b=0.5"], "cannot be called"),
    ],
)
def test_wrong_parts_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_parts(words)


def test_decimal_shares_add_up_exactly() -> None:
    assert len(parse_parts([f"p{n}=0.1" for n in range(10)])) == 10
