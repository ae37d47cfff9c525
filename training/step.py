"""One optimiser step."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from model import Clip, clip_loss
from pipeline import PackedBatch
from training.config import OptimConfig, TrainConfig
from training.timeline import Timeline


def train_step(
    clip: Clip,
    optimizer: torch.optim.Optimizer,
    batch: PackedBatch,
    config: TrainConfig,
    timeline: Timeline,
) -> Tensor:
    """Forward, loss, backward, update; nothing is read back from the device.

    Args:
        clip: updated in place.
        optimizer: with this step's learning rate already set.
        batch: on the model's device.
        config: of the run.
        timeline: seconds by activity; on a GPU they are those of launching the work.

    Returns:
        The loss before the update, a scalar on the model's device.
    """
    with timeline.during("forward"), autocast(config, clip.logit_scale.device):
        images, texts, scale = clip(
            batch.patches, batch.positions, batch.image_offsets, batch.tokens, batch.text_offsets
        )
        loss = clip_loss(images, texts, scale)
    with timeline.during("backward"):
        loss.backward()
    with timeline.during("optimiser"):
        _clip_gradients(clip, config.optim)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(config.optim.max_logit_scale))
    return loss.detach()


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 matrix products where the configuration asks for them."""
    wanted = config.precision
    if wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _clip_gradients(clip: Clip, config: OptimConfig) -> None:
    if config.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(clip.parameters(), config.max_grad_norm)
