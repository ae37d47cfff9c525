"""Several sets in one order: exact counts, even shares, no sample twice, any step at once."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from tessera.pipeline.mixed_order import Interleaving, MixedOrder
from tessera.pipeline.order import SampleOrder
from tessera.pipeline.window_order import WindowOrder

QUOTAS = st.lists(st.integers(1, 40), min_size=2, max_size=4)


@settings(max_examples=100, deadline=None)
@given(quotas=QUOTAS)
def test_places_of_all_sets_are_those_of_the_epoch(quotas: list[int]) -> None:
    mixed = Interleaving(tuple(quotas))
    places = [mixed.places(n, np.arange(2 * quota)) for n, quota in enumerate(quotas)]
    assert sorted(np.concatenate(places).tolist()) == list(range(2 * sum(quotas)))
    for number, own in enumerate(places):
        assert (np.diff(own) > 0).all()
        shares = (np.arange(2 * quotas[number]) + 0.5) * sum(quotas) / quotas[number]
        assert np.abs(own - shares).max() <= len(quotas)
        for place in range(2 * sum(quotas)):
            assert mixed.visits_before(number, place) == (own < place).sum()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(5, 30), min_size=2, max_size=3),
    weights=st.lists(st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.0]), min_size=3, max_size=3),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**63),
    windows=st.booleans(),
)
def test_weights_are_kept_and_no_batch_holds_a_sample_twice(
    sizes: list[int], weights: list[float], batch_size: int, seed: int, windows: bool
) -> None:
    quotas = tuple(max(1, round(w * size)) for w, size in zip(weights, sizes, strict=False))
    mixed = Interleaving(quotas)
    orders = [
        WindowOrder([3] * (size // 3) + [size % 3], seed + n, 2)
        if windows
        else SampleOrder(size, seed + n)
        for n, size in enumerate(sizes)
    ]
    firsts = np.cumsum([0, *sizes])[:-1].tolist()
    order = MixedOrder(orders, mixed, firsts, firsts, seed)
    if any(mixed.most_in_batch(n, batch_size) > size for n, size in enumerate(sizes)):
        return
    epochs = 4
    steps = -(-epochs * mixed.epoch // batch_size)
    batches = [order.visits(step, batch_size) for step in range(steps)]
    for batch in batches:
        assert len(set(batch.sample_ids.tolist())) == batch_size
    ids = np.concatenate([batch.sample_ids for batch in batches])[: epochs * mixed.epoch]
    passes = np.concatenate([batch.passes for batch in batches])[: epochs * mixed.epoch]
    for first, size, quota in zip(firsts, sizes, quotas, strict=True):
        own = (ids >= first) & (ids < first + size)
        for epoch in np.split(own, epochs):
            assert epoch.sum() == quota
        counts = Counter(ids[own].tolist())
        every = [counts[first + n] for n in range(size)]
        assert max(every) - min(every) <= 2  # a visit may wait for the batch after the last
        assert len(set(zip(ids[own].tolist(), passes[own].tolist(), strict=True))) == own.sum()
    step = steps // 2
    assert (order.visits(step, batch_size).sample_ids == batches[step].sample_ids).all()


def test_a_step_of_huge_sets_is_exact_and_cheap() -> None:
    quotas = (400_000_000, 123_456_789)
    order = MixedOrder(
        [SampleOrder(quota, n) for n, quota in enumerate(quotas)],
        Interleaving(quotas),
        (0, quotas[0]),
        (0, 0),
        0,
    )
    ids = order.visits(10**7, 4096).sample_ids
    assert len(set(ids.tolist())) == 4096
    assert abs((ids >= quotas[0]).sum() - 4096 * quotas[1] / sum(quotas)) <= 2
