from __future__ import annotations

import math

import pytest

from tessera.tools.comparison.statistics import Spread, paired


def test_a_spread_has_mean_deviation_and_interval() -> None:
    spread = Spread(values=(0.10, 0.12, 0.17))
    assert spread.mean == pytest.approx(0.13)
    assert spread.deviation == pytest.approx(0.0360555)
    assert spread.interval == pytest.approx((0.13 - 0.0895664, 0.13 + 0.0895664), abs=1e-6)
    assert spread.is_not_zero


def test_one_value_has_no_spread() -> None:
    spread = Spread(values=(0.3,))
    assert spread.mean == 0.3
    assert math.isnan(spread.deviation)
    assert spread.interval is None
    assert not spread.is_not_zero


def test_what_two_runs_owe_to_the_seed_cancels() -> None:
    difference = paired([0.31, 0.52, 0.13], [0.30, 0.50, 0.10])
    assert difference.values == pytest.approx((0.01, 0.02, 0.03))
    assert not difference.is_not_zero
    assert paired([0.32, 0.521, 0.122], [0.30, 0.50, 0.10]).is_not_zero
    assert paired([0.30, 0.50, 0.10], [0.32, 0.521, 0.122]).is_not_zero
