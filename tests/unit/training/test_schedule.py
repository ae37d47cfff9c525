"""Learning rates, step by step against open_clip's schedulers, and by hand where it has none."""

from __future__ import annotations

import pytest
import torch
from open_clip_train import scheduler

from tessera.training.config import OptimConfig
from tessera.training.schedule import learning_rate

BATCH, STEPS, WARMUP = 32, 40, 7


def ours(config: OptimConfig, batch_size: int = BATCH, num_steps: int = STEPS) -> list[float]:
    total = num_steps * batch_size
    return [
        learning_rate(step * batch_size, config, batch_size=batch_size, total_samples=total)
        for step in range(num_steps)
    ]


def test_every_step_has_the_learning_rate_of_open_clip() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)])
    common = {"learning_rate": 1e-3, "warmup_samples": WARMUP * BATCH}
    theirs = scheduler.cosine_lr(optimizer, 1e-3, WARMUP, STEPS)
    assert ours(OptimConfig(**common)) == pytest.approx([theirs(k) for k in range(STEPS)])
    theirs = scheduler.const_lr(optimizer, 1e-3, WARMUP, STEPS)
    constant = OptimConfig(**common, schedule="constant")
    assert ours(constant) == pytest.approx([theirs(k) for k in range(STEPS)])
    for power in (1.0, 2.0):
        theirs = scheduler.const_lr_cooldown(optimizer, 1e-3, WARMUP, STEPS, 12, power, 1e-5)
        cooldown = OptimConfig(
            **common,
            schedule="cooldown",
            cooldown_samples=12 * BATCH,
            cooldown_power=power,
            min_learning_rate=1e-5,
        )
        assert ours(cooldown) == pytest.approx([theirs(k) for k in range(STEPS)])


def test_the_cosine_ends_at_the_minimum() -> None:
    config = OptimConfig(learning_rate=1e-3, min_learning_rate=1e-4)
    rates = ours(config, num_steps=1000)
    assert rates[0] == 1e-3
    assert rates[500] == pytest.approx(5.5e-4)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)


def test_the_course_over_samples_does_not_depend_on_the_batch_size() -> None:
    config = OptimConfig(learning_rate=1e-3, warmup_samples=4 * 64)
    small, large = ours(config, 32, 200), ours(config, 64, 100)
    assert small[8::2] == pytest.approx(large[4:])
    assert small[7] == large[3] == 1e-3  # the warm-up's last step reaches the peak


def test_the_rate_follows_the_global_batch_where_asked() -> None:
    flip = OptimConfig(learning_rate=4e-6, base_batch_size=256, schedule="constant")
    assert ours(flip, batch_size=65_536)[0] == pytest.approx(1.024e-3)  # FLIP, table 10
    assert ours(flip, batch_size=256)[0] == pytest.approx(4e-6)
