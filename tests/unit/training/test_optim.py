"""Schedule and parameter groups."""

import math

import pytest
import torch
from torch import nn

from training.config import OptimConfig
from training.optim import build_optimizer, learning_rate


def test_schedule_rises_linearly_and_falls_as_a_cosine() -> None:
    config = OptimConfig(learning_rate=1e-3, warmup_samples=100)
    assert learning_rate(10, 1000, config) == pytest.approx(1e-4)
    assert learning_rate(100, 1000, config) == pytest.approx(1e-3)
    assert learning_rate(550, 1000, config) == pytest.approx(5e-4)
    quarter = learning_rate(325, 1000, config)
    assert quarter == pytest.approx(1e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(1000, 1000, config) == 0


def test_schedule_does_not_depend_on_the_batch_size() -> None:
    config = OptimConfig(learning_rate=1e-3, warmup_samples=100)
    assert learning_rate(4 * 128, 10_000, config) == learning_rate(2 * 256, 10_000, config)


def test_no_decay_on_gains_biases_and_scalars() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    decayed, plain = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 4)]
    assert decayed["weight_decay"] == 0.3
    assert len(plain["params"]) == 4
    assert plain["weight_decay"] == 0
