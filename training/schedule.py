"""Learning rates as functions of the samples seen, so that no batch size changes their course."""

from __future__ import annotations

import math

from tessera.training.config import OptimConfig


def learning_rate(
    samples: int, config: OptimConfig, *, batch_size: int, total_samples: int
) -> float:
    """The learning rate of one step; with equal lengths that of open_clip's schedulers.

    A linear warm-up from 0 that reaches the peak with its last step, then by `config.schedule`

    - cosine: half a cosine from the peak down to the minimum;
    - constant: the peak;
    - cooldown: the peak, then over the last `cooldown_samples` the way down to the minimum as
      `(1 - x) ** cooldown_power`, x the share of the cool-down that is done.

    Args:
        samples: pairs seen before this step.
        config: shape, peak and lengths.
        batch_size: pairs of this step over all ranks.
        total_samples: pairs of the whole run or stage.
    """
    peak, lowest = config.peak(batch_size), config.min_learning_rate
    warmup = config.warmup_pairs(total_samples)
    if samples < warmup:
        return peak * min(1.0, (samples + batch_size) / warmup)
    return lowest + (peak - lowest) * _share(samples, config, warmup, total_samples)


def _share(samples: int, config: OptimConfig, warmup: int, total_samples: int) -> float:
    """How much of the way from the minimum up to the peak is left after the warm-up."""
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        done = _done(samples, warmup, total_samples)
        return 0.5 * (1 + math.cos(math.pi * done))
    done = _done(samples, total_samples - config.cooldown_samples, total_samples)
    return (1 - done) ** config.cooldown_power


def _done(samples: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (samples - start) / max(1, end - start)))
