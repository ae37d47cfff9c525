"""The order is a permutation in every pass, the same for every world size, and cheap anywhere."""

import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tessera.pipeline.order import SampleOrder
from tessera.pipeline.window_order import WindowOrder


@pytest.mark.parametrize("num_samples", [1, 2, 3, 17, 256, 1000, 4097])
@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
def test_every_pass_serves_every_sample_once(num_samples: int, seed: int) -> None:
    order = SampleOrder(num_samples, seed)
    for number in range(3):
        served = order.ids(number, num_samples)
        assert sorted(served.tolist()) == list(range(num_samples))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100])
def test_passes_stay_whole_when_batches_straddle_them(batch_size: int) -> None:
    num_samples, num_passes = 97, 4
    order = SampleOrder(num_samples, 3)
    steps = -(-num_samples * num_passes // batch_size)
    visits = [order.visits(step, batch_size) for step in range(steps)]
    ids = np.concatenate([v.sample_ids for v in visits])
    passes = np.concatenate([v.passes for v in visits])
    for number in range(num_passes):
        assert sorted(ids[passes == number].tolist()) == list(range(num_samples))


def test_batch_size_does_not_change_the_sequence() -> None:
    order = SampleOrder(1000, 1)
    small = np.concatenate([order.ids(step, 8) for step in range(100)])
    large = np.concatenate([order.ids(step, 200) for step in range(4)])
    assert (small == large).all()


def test_ranks_share_the_global_batch() -> None:
    visits = SampleOrder(1000, 1).visits(5, 96)
    for world_size in (1, 2, 3, 8):
        parts = [visits.part(rank, world_size).sample_ids for rank in range(world_size)]
        assert (np.concatenate(parts) == visits.sample_ids).all()


def test_passes_and_seeds_differ() -> None:
    first, again = SampleOrder(500, 1), SampleOrder(500, 1)
    assert (first.ids(0, 500) == again.ids(0, 500)).all()
    assert (first.ids(0, 500) != first.ids(1, 500)).mean() > 0.9
    assert (first.ids(0, 500) != SampleOrder(500, 2).ids(0, 500)).mean() > 0.9


def test_neighbours_in_the_index_are_spread() -> None:
    """A sample and the one stored after it share a batch no more often than by chance."""
    num_samples, batch_size = 20_000, 100
    order = SampleOrder(num_samples, 0)
    batch_of = np.empty(num_samples, dtype=np.int64)
    for step in range(num_samples // batch_size):
        batch_of[order.ids(step, batch_size)] = step
    together = (batch_of[1:] == batch_of[:-1]).sum()
    assert 60 < together < 140  # 100 expected, standard deviation 10


def test_any_step_of_a_huge_set_costs_little() -> None:
    order = SampleOrder(400_000_000, 0)
    order.ids(0, 1024)
    start = time.process_time()
    ids = order.ids(10**9, 1024)
    assert time.process_time() - start < 0.1
    assert len(set(ids.tolist())) == 1024
    assert ids.max() < 400_000_000


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        SampleOrder(0, 0)
    with pytest.raises(ValueError, match="step >= 0"):
        SampleOrder(5, 0).ids(-1, 4)


@given(rows=st.sets(st.integers(0, 5000), min_size=1), seed=st.integers(0, 2**63))
def test_every_pass_over_a_selection_serves_its_rows_once(rows: set[int], seed: int) -> None:
    selected = np.array(sorted(rows), dtype=np.uint32)
    order = SampleOrder(5001, seed, selected)
    assert order.num_samples == len(rows)
    for number in range(2):
        served = order.ids(number, len(rows))
        assert served.dtype == np.int64
        assert sorted(served.tolist()) == sorted(rows)
    together = order.ids(0, 2 * len(rows))
    assert (together[len(rows) :] == order.ids(1, len(rows))).all(), "passes stay whole"


def test_a_selection_has_the_order_of_a_set_of_its_size() -> None:
    """So a selection of everything, or none at all, is the same run."""
    rows = np.arange(3, 1003, dtype=np.uint32)
    selected, plain = SampleOrder(2000, 7, rows), SampleOrder(1000, 7)
    assert (selected.ids(5, 300) == plain.ids(5, 300) + 3).all()
    whole = SampleOrder(1000, 7, np.arange(1000, dtype=np.uint32))
    assert (whole.ids(5, 300) == plain.ids(5, 300)).all()


def test_the_order_without_a_selection_is_what_it_was() -> None:
    """Recorded before selections existed: a run from then goes on the same."""
    assert SampleOrder(1000, 7).ids(3, 8).tolist() == [452, 251, 634, 439, 464, 56, 277, 387]


def test_rows_outside_the_index_are_refused() -> None:
    for rows in ([], [5], [-1, 2]):
        with pytest.raises(ValueError, match=r"sample|rows"):
            SampleOrder(5, 0, np.array(rows, dtype=np.int64))


@settings(max_examples=100, deadline=None)
@given(
    num_samples=st.integers(2, 60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum),
)
def test_a_batch_never_holds_a_sample_twice_and_every_pass_stays_whole(
    num_samples: int, share: float, seed: int, counts: list[int]
) -> None:
    """At the border of two passes a sample used to be its own negative."""
    for make in (lambda: SampleOrder(num_samples, seed), lambda: WindowOrder(counts, seed, 2)):
        order = make()
        size = order.num_samples
        batch_size = max(1, round(share * size))
        batches = [order.visits(step, batch_size) for step in range(6 * size // batch_size)]
        for batch in batches:
            assert len(set(batch.sample_ids.tolist())) == batch_size
        ids = np.concatenate([batch.sample_ids for batch in batches])
        passes = np.concatenate([batch.passes for batch in batches])
        for number in range(5):
            assert sorted(ids[passes == number].tolist()) == list(range(size))
        for step in (len(batches) - 1, len(batches) // 2):  # at once, without the steps before
            assert (make().ids(step, batch_size) == batches[step].sample_ids).all()


def test_only_the_batches_at_a_border_differ_from_plain_permutations() -> None:
    """Recorded before borders were mended: all other batches of a run are what they were."""
    order = SampleOrder(1000, 7)
    assert order.ids(14, 64)[:4].tolist() == [356, 859, 44, 422]
    assert order.ids(17, 64)[:4].tolist() == [956, 787, 149, 289]
    small = SampleOrder(19, 1)
    assert small.ids(0, 10).tolist() == [3, 1, 9, 0, 4, 17, 2, 10, 16, 12]
    assert [small.ids(step, 19)[0] for step in range(3)] == [3, 10, 2]
