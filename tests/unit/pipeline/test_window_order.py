from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tessera.pipeline.window_order import WindowOrder


def shards_of(counts: list[int]) -> NDArray[np.int64]:
    """Shard of each sample."""
    return np.repeat(np.arange(len(counts)), counts)


def one_pass(order: WindowOrder, batch_size: int, number: int = 0) -> NDArray[np.int64]:
    """Ids of a pass, read batch by batch; the pass must begin with a batch."""
    steps = order.num_samples // batch_size
    return np.concatenate([order.ids(number * steps + step, batch_size) for step in range(steps)])


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum),
    window=st.integers(1, 5),
    seed=st.integers(0, 2**63),
)
def test_every_pass_serves_every_sample_once(counts: list[int], window: int, seed: int) -> None:
    order = WindowOrder(counts, seed, window)
    ids = np.concatenate([order.ids(step, 1) for step in range(2 * order.num_samples)])
    for number in range(2):
        part = ids[number * order.num_samples : (number + 1) * order.num_samples]
        assert sorted(part.tolist()) == list(range(sum(counts)))


def test_samples_of_a_window_come_from_its_shards_and_are_mixed() -> None:
    shard = shards_of([50] * 12)
    order = WindowOrder([50] * 12, 3, 4)
    windows = shard[one_pass(order, 50)].reshape(3, 200)
    assert all(len(set(window.tolist())) == 4 for window in windows)
    assert len(set(windows.flatten().tolist())) == 12
    assert all(len(set(shard[order.ids(step, 20)].tolist())) > 2 for step in range(30))


def test_a_step_goes_from_shard_to_shard_so_that_a_rank_needs_few_of_them() -> None:
    shard = shards_of([400] * 16)
    order = WindowOrder([400] * 16, 0, 8)
    needed: list[set[int]] = [set() for _ in range(4)]
    for step in range(50):  # one window
        visits = order.visits(step, 64)
        assert len(set(np.flatnonzero(np.diff(shard[visits.sample_ids])))) <= 7
        for rank in range(4):
            needed[rank].update(shard[visits.part(rank, 4).sample_ids].tolist())
    # An even share is two shards each; neighbours overlap by those at the edges.
    assert max(map(len, needed)) <= 5
    assert len(set().union(*needed)) == 8


def test_samples_of_a_batch_do_not_depend_on_how_it_is_cut() -> None:
    order = WindowOrder([7, 3, 11, 5], 5, 2)
    for step in range(6):
        parts = np.concatenate([order.ids(13 * step + place, 1) for place in range(13)])
        np.testing.assert_array_equal(np.sort(order.ids(step, 13)), np.sort(parts))


def test_passes_and_seeds_differ() -> None:
    counts = [40] * 10
    first, second = (one_pass(WindowOrder(counts, 1, 3), 40, number) for number in (0, 1))
    other = one_pass(WindowOrder(counts, 2, 3), 40)
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9


def test_only_selected_rows_are_served() -> None:
    rows = np.array([0, 3, 9, 31, 32, 39], dtype=np.uint32)
    order = WindowOrder([10, 10, 10, 10], 0, 2, rows)
    assert sorted(one_pass(order, 6).tolist()) == rows.tolist()
    assert set(order.upcoming_shards(0, 6)) == {0, 3}


def test_upcoming_shards_hold_the_samples_of_this_and_of_later_steps() -> None:
    shard = shards_of([8] * 10)
    order = WindowOrder([8] * 10, 4, 2)
    for step in range(40):
        upcoming = order.upcoming_shards(step, 4)
        assert len(upcoming) == 4
        assert set(shard[order.ids(step, 4)].tolist()) <= set(upcoming[:2])
        assert set(shard[order.ids(step + 4, 4)].tolist()) <= set(upcoming)


def test_wrong_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="window_shards"):
        WindowOrder([2], 0, 0)
    with pytest.raises(ValueError, match="at least one sample"):
        WindowOrder([], 0, 2)


def test_any_step_of_a_large_set_is_fast() -> None:
    order = WindowOrder([10_000] * 1240, 0, 16)
    order.ids(0, 1024)
    times = []
    for step in (5_000, 11_000, 12_000):
        order.ids(step, 1024)
        start = time.perf_counter()
        order.ids(step + 1, 1024)
        times.append(time.perf_counter() - start)
    # The target is 5 ms; the bound leaves room for a busy machine.
    assert min(times) < 0.025
