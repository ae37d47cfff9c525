"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tessera.pipeline import PackedBatch
from tessera.training.accumulation import LossOf, backward_in_chunks, encode, encode_in_chunks
from tessera.training.config import TrainConfig
from tessera.training.optim import clip_gradients
from tessera.training.parallel import bare
from tessera.training.timeline import Timeline


def train_step(
    model: nn.Module,
    loss_of: LossOf,
    optimizer: torch.optim.Optimizer,
    chunks: Sequence[PackedBatch],
    config: TrainConfig,
    timeline: Timeline,
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward, update; nothing is read back from the device.

    Args:
        model: a `Clip`, or what `parallelise` made of it; updated in place.
        loss_of: gives the loss of the features of all chunks.
        optimizer: with this step's learning rate already set.
        chunks: the batch on the model's device, whole or cut by `accumulation.split`.
        config: of the run.
        timeline: seconds by activity; on a GPU they are those of launching the work.

    Returns:
        The loss before the update and the length of its gradient before it was clipped, scalars on
        the model's device.
    """
    clip = bare(model)
    with timeline.during("forward"):
        whole = len(chunks) == 1
        features = encode(model, chunks[0]) if whole else encode_in_chunks(model, chunks)
        loss = loss_of(features)
    with timeline.during("backward"):
        loss.backward()
        if not whole:
            backward_in_chunks(model, chunks, features)
    with timeline.during("optimiser"):
        norm = clip_gradients(clip, config.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            lowest, highest = config.optim.min_logit_scale, config.optim.max_logit_scale
            clip.logit_scale.clamp_(math.log(lowest), math.log(highest))
    return loss.detach(), norm
