"""Optimiser and learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with open_clip's groups: no decay for gains, biases, scalars (ndim < 2).

    Args:
        model: all its parameters that require a gradient are trained.
        config: rates and decays.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def learning_rate(samples: int, total_samples: int, config: OptimConfig) -> float:
    """Linear warm-up, then half a cosine down to 0.

    Args:
        samples: pairs that will have been seen after this step.
        total_samples: pairs of the whole run.
        config: highest rate and length of the warm-up.

    Returns:
        The learning rate of this step.
    """
    if samples < config.warmup_samples:
        return config.learning_rate * samples / config.warmup_samples
    rest = max(1, total_samples - config.warmup_samples)
    done = min(1.0, (samples - config.warmup_samples) / rest)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
