from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tessera.pipeline.index.text_reduction import TextReductionKind, choose_tokens, draws_needed

KINDS: tuple[TextReductionKind, ...] = ("truncate", "random", "shuffle", "block", "syntax")


def choose(
    kind: TextReductionKind,
    lengths: list[int],
    budget: int,
    seed: int = 0,
    classes: list[int] | None = None,
) -> list[list[int]]:
    """Places within its caption that each caption keeps."""
    counts = np.array(lengths, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    draws = rng.random((len(lengths), draws_needed(kind, counts, budget)))
    given_classes = np.array(
        classes if classes is not None else rng.integers(0, 4, counts.sum()), dtype=np.uint8
    )
    places, kept = choose_tokens(starts, counts, budget, kind, draws, given_classes)
    parts = np.split(places, np.cumsum(kept)[:-1])
    return [(part - start).tolist() for part, start in zip(parts, starts, strict=True)]


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    budget=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_budget_and_order(
    kind: TextReductionKind, lengths: list[int], budget: int, seed: int
) -> None:
    for length, places in zip(lengths, choose(kind, lengths, budget, seed), strict=True):
        assert len(places) == min(length, budget)
        assert len(set(places)) == len(places)
        assert all(0 <= place < length for place in places)
        if kind != "shuffle":
            assert places == sorted(places)
        if length <= budget:
            assert places == list(range(length))


def test_truncate_keeps_the_head_and_block_a_run() -> None:
    assert choose("truncate", [9, 3], 4) == [[0, 1, 2, 3], [0, 1, 2]]
    runs = {tuple(choose("block", [9], 4, seed)[0]) for seed in range(200)}
    assert runs == {tuple(range(first, first + 4)) for first in range(6)}


@pytest.mark.parametrize("kind", ["random", "shuffle"])
def test_every_token_is_kept_equally_often(kind: TextReductionKind) -> None:
    count: NDArray[np.int64] = np.zeros(10, dtype=np.int64)
    for seed in range(2000):
        count[choose(kind, [10], 3, seed)[0]] += 1
    # 600 expected; four standard deviations of a binomial draw are 82.
    assert abs(count - 600).max() < 82


def test_shuffle_forgets_the_order() -> None:
    kept = [choose("shuffle", [10], 3, seed)[0] for seed in range(300)]
    assert 0.1 < np.mean([places == sorted(places) for places in kept]) < 0.25


def test_syntax_takes_nouns_then_adjectives_then_verbs_and_the_first_of_equals() -> None:
    # an orange cat that is sitting on a ledge
    classes = [3, 1, 0, 3, 2, 2, 3, 3, 0]
    assert choose("syntax", [9], 2, classes=classes) == [[2, 8]]
    assert choose("syntax", [9], 3, classes=classes) == [[1, 2, 8]]
    assert choose("syntax", [9], 4, classes=classes) == [[1, 2, 4, 8]]
    assert choose("syntax", [9], 6, classes=classes) == [[0, 1, 2, 4, 5, 8]]


def test_classes_belong_to_the_stored_ids() -> None:
    assert choose("syntax", [2, 4], 2, classes=[3, 3, 3, 0, 3, 0]) == [[0, 1], [1, 3]]


def test_syntax_needs_classes() -> None:
    lengths = np.array([5])
    with pytest.raises(ValueError, match="word classes"):
        choose_tokens(np.array([0]), lengths, 2, "syntax", np.empty((1, 0)))


def test_no_draws_where_nothing_is_cut() -> None:
    assert draws_needed("random", np.array([3, 4]), 4) == 0
    assert draws_needed("random", np.array([3, 5]), 4) == 5
    assert draws_needed("block", np.array([3, 5]), 4) == 1
    assert draws_needed("syntax", np.array([3, 5]), 4) == 0
