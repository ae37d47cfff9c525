"""Signs of a run that goes wrong: told when they are there, once, and not otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tessera.model import LossConfig
from tessera.training.config import OptimConfig, TrainConfig
from tessera.training.health import Health, falling_scores
from tessera.training.metrics import StepRecord
from tests.unit.training.test_config import small

CHANCE = math.log(100)


def records(losses: list[float], *, scale: float = 20.0, lr: float = 5e-4) -> list[StepRecord]:
    return [
        StepRecord(step=step, samples=step * 100, loss=loss, lr=lr, logit_scale=scale, step_s=1.0,
                   data_wait_s=0.0)
        for step, loss in enumerate(losses, 1)
    ]  # fmt: skip


def told(config: TrainConfig, *batches: list[StepRecord]) -> list[str]:
    health = Health(config)
    return [line for batch in batches for line in health.warnings(batch)]


def test_a_loss_at_chance_is_told_once() -> None:
    (line,) = told(small(), records([CHANCE] * 60), records([CHANCE] * 60))
    assert "guessing among 100 pairs gives 4.605" in line
    assert "collapsed" in line


@pytest.mark.parametrize(
    ("config", "losses"),
    [
        (small(), [CHANCE - 0.3] * 100),
        (small(), [CHANCE] * 40),  # too few to say
        (replace(small(), loss=LossConfig(kind="siglip")), [CHANCE] * 100),
    ],
)
def test_a_run_that_learns_is_left_alone(config: TrainConfig, losses: list[float]) -> None:
    assert told(config, records(losses)) == []


def test_the_warmup_is_given_its_time() -> None:
    config = replace(small(), optim=OptimConfig(learning_rate=1.0))
    rising = [replace(r, lr=r.step / 1000) for r in records([CHANCE] * 100)]
    assert told(config, rising) == []
    level = [replace(r, lr=1.0) for r in rising]
    assert len(told(config, level)) == 1


def test_a_scale_at_its_bounds_is_told() -> None:
    assert "upper bound 100" in told(small(), records([1.0] * 60, scale=100.0))[0]
    assert "lower bound 1" in told(small(), records([1.0] * 60, scale=1.0))[0]
    assert told(small(), records([1.0] * 60, scale=99.0)) == []


def test_scores_that_fall_twice_are_told() -> None:
    rising = [(0, {"a": 0.1, "b": 0.5}), (10, {"a": 0.4, "b": 0.6}), (20, {"a": 0.3, "b": 0.7})]
    assert falling_scores(rising) is None
    warning = falling_scores([*rising, (30, {"a": 0.2, "b": 0.8})])
    assert warning is not None
    assert "a 40.0% at step 10, now 20.0%" in warning
    assert "b " not in warning
    assert falling_scores([*rising, (30, {"a": 0.35, "b": 0.8})]) is None
