"""A run that is made longer than it was planned: whether that can be, and what it then is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tessera.training.config import TrainConfig


def check_extension(config: TrainConfig, run: Path, *, planned: int, step: int) -> None:
    """Make sure that the longer run equals one that was as long from its start.

    Args:
        config: of the longer run.
        run: its folder.
        planned: pairs that the run on disk is to see.
        step: of its newest checkpoint.

    Raises:
        ValueError: the steps done would have been others in a longer run; says why, and how to
            train on from the weights.
    """
    reason = _obstacle(config, planned=planned, step=step)
    if reason:
        raise ValueError(
            f"the run in {run} has {planned:,} pairs and cannot be extended to "
            f"{config.total_samples:,}: {reason}. Start another run from its weights, with "
            f"--init-from {run} and a --run-dir of its own"
        )


def pinned(config: TrainConfig, planned: int) -> TrainConfig:
    """The configuration of an extended run: its warm-up is of the length that it began with."""
    pairs = config.optim.warmup_pairs(planned)
    return replace(config, optim=replace(config.optim, warmup_samples=pairs))


def _obstacle(config: TrainConfig, *, planned: int, step: int) -> str:
    optim, done = config.optim, step * config.batch_size
    if not step:
        return ""  # it begins anew
    if config.stages:
        return "it has several stages, of which the first one cannot grow any more"
    if config.mask.uses_embedding:
        return "its mask goes from pixels to embeddings over the length of the run"
    if optim.schedule == "cosine":
        return "its learning rate follows a cosine, which depends on the length from the start"
    if optim.schedule == "cooldown" and done > planned - optim.cooldown_samples:
        return (
            f"its cooldown began at {planned - optim.cooldown_samples:,} pairs, and the newest "
            f"checkpoint has seen {done:,}"
        )
    return ""
