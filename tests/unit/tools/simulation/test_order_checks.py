from __future__ import annotations

import numpy as np
import pytest

from pipeline.order import SampleOrder, Visits
from tools.simulation import order_checks
from tools.simulation.order_checks import OrderKind, OrderSize


def size(kind: OrderKind = "global", num_samples: int = 5003) -> OrderSize:
    return OrderSize(
        num_samples=num_samples, samples_per_shard=100, kind=kind, window_shards=8, seed=3
    )


class Repeats(SampleOrder):
    """Serves every sample of the lower half twice and none of the upper."""

    def visits(self, step: int, batch_size: int) -> Visits:
        right = super().visits(step, batch_size)
        return Visits(sample_ids=right.sample_ids // 2, passes=right.passes)


class CutDependent(SampleOrder):
    """A new process serves another sequence."""

    opened = 0

    def __init__(self, num_samples: int, seed: int) -> None:
        CutDependent.opened += 1
        super().__init__(num_samples, seed + CutDependent.opened)


@pytest.mark.parametrize("kind", ["global", "window"])
def test_the_real_orders_pass(kind: OrderKind) -> None:
    once = order_checks.check_once(size(kind))
    assert (once.places, once.whole_pass, once.repeated) == (5003, True, 0)
    for world_size in (1, 8, 256):
        ranks = order_checks.check_ranks(size(kind), world_size, 4 * world_size, np.ones(10))
        assert (ranks.differing, ranks.differing_after_resume) == (0, 0)
        assert ranks.bytes_max_over_mean == 1


def test_a_sample_served_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_checks, "SampleOrder", Repeats)
    assert order_checks.check_once(size()).repeated == 5003 // 2


def test_stretches_of_a_large_pass_find_a_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_checks, "_WHOLE_PASS", 100)
    monkeypatch.setattr(order_checks, "_DRAWN", 2_000_000)
    assert order_checks.check_once(size(num_samples=30_000_000)).repeated == 0
    monkeypatch.setattr(order_checks, "SampleOrder", Repeats)
    assert order_checks.check_once(size(num_samples=30_000_000)).repeated > 10_000


def test_a_resume_that_serves_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_checks, "SampleOrder", CutDependent)
    result = order_checks.check_ranks(size(), 4, 16, np.ones(10))
    assert result.differing_after_resume == result.steps


def test_machines_of_a_window_share_its_shards() -> None:
    one = order_checks.check_window_reads(size("window"), 1, 64)
    assert (one.shards_per_cache, one.times_read) == (8, 1)
    four = order_checks.check_window_reads(size("window"), 4, 64)
    assert 2 <= four.shards_per_cache <= 5
    assert four.times_read == pytest.approx(four.shards_per_cache * 4 / 8, rel=0.01)
