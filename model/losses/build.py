"""From a configuration to the loss."""

from __future__ import annotations

from fractions import Fraction

import torch.distributed as dist

from tessera.model.losses.base import ContrastiveLoss
from tessera.model.losses.clip import ClipLoss
from tessera.model.losses.config import LossConfig
from tessera.model.losses.fastclip import FastClipLoss
from tessera.model.losses.ranks import Ranks
from tessera.model.losses.siglip import SiglipLoss


def build_loss(
    config: LossConfig,
    *,
    num_samples: int,
    steps_per_pass: Fraction | int,
    passes_before: Fraction | int = 0,
    group: dist.ProcessGroup | None = None,
) -> ContrastiveLoss:
    """The loss of a configuration, its state on the CPU until `.to(device)`.

    Args:
        config: which loss, and its options.
        num_samples: samples of the index; ids lie in 0 .. num_samples-1.
        steps_per_pass: steps of the global batch in a pass over the data; a fraction where a batch
            may hold the end of one pass and the start of the next.
        passes_before: passes over the data that this loss was trained for before step 0, in earlier
            stages of the run.
        group: the ranks that share the global batch; None for the default group, or for this
            process alone where torch.distributed does not run.

    Raises:
        ValueError: a number is not positive, or `passes_before` negative.
    """
    if num_samples < 1 or steps_per_pass <= 0 or passes_before < 0:
        raise ValueError(
            f"a loss needs samples and steps, got {num_samples} samples, {steps_per_pass} steps "
            f"per pass and {passes_before} passes before"
        )
    ranks = Ranks.of(group)
    if config.kind == "clip":
        return ClipLoss(config, ranks)
    if config.kind == "siglip":
        return SiglipLoss(config, ranks)
    return FastClipLoss(
        config,
        num_samples=num_samples,
        steps_per_pass=steps_per_pass,
        passes_before=passes_before,
        ranks=ranks,
    )
