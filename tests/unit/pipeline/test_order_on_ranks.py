"""Every sample comes once a pass, in both orders, on any number of ranks, and after a resume."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from tessera.pipeline.order import Order, SampleOrder
from tessera.pipeline.window_order import WindowOrder

KINDS = ("global", "window")


def opened(kind: str, counts: list[int], seed: int) -> Order:
    """The order as a new process has it, of shards with so many samples each."""
    return SampleOrder(sum(counts), seed) if kind == "global" else WindowOrder(counts, seed, 3)


def served(orders: list[Order], steps: range, batch_size: int) -> tuple[NDArray, NDArray]:
    """Samples and passes that ranks, each with an order of its own, serve in some steps."""
    world_size = len(orders)
    parts = [
        order.visits(step, batch_size).part(rank, world_size)
        for step in steps
        for rank, order in enumerate(orders)
    ]
    assert {len(part.sample_ids) for part in parts} <= {batch_size // world_size}
    ids, passes = ([getattr(part, name) for part in parts] for name in ("sample_ids", "passes"))
    return np.concatenate([[], *ids]), np.concatenate([[], *passes])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(sum),
    batch_size=st.sampled_from([1, 6, 16, 24]),
    seed=st.integers(0, 2**63),
    stop=st.integers(0, 40),
)
def test_every_world_size_serves_every_sample_once_a_pass(
    kind: str, counts: list[int], batch_size: int, seed: int, stop: int
) -> None:
    num_samples, num_passes = sum(counts), 2
    num_steps = -(-num_samples * num_passes // batch_size)
    stop = min(stop, num_steps)
    alone = served([opened(kind, counts, seed)], range(num_steps), batch_size)
    sizes = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    for world_size, later_size in zip(sizes, reversed(sizes), strict=True):
        ranks = [opened(kind, counts, seed) for _ in range(world_size)]
        before = served(ranks, range(stop), batch_size)
        ranks = [opened(kind, counts, seed) for _ in range(later_size)]
        resumed = served(ranks, range(stop, num_steps), batch_size)
        ids, passes = (np.concatenate(both) for both in zip(before, resumed, strict=True))
        assert ((ids == alone[0]) & (passes == alone[1])).all()
        for number in range(num_passes):
            assert sorted(ids[passes == number]) == list(range(num_samples))


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_ranks_serve_every_sample_once(kind: str) -> None:
    order, num_samples = opened(kind, [10_000] * 99 + [5_003], 3), 995_003
    batches = [order.visits(step, 4096 * 64) for step in range(4)]
    parts = [batch.part(rank, 4096) for batch in batches for rank in range(4096)]
    ids, passes = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("sample_ids", "passes")
    )
    assert (np.bincount(ids[passes == 0], minlength=num_samples) == 1).all()
