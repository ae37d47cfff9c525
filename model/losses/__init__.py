"""Contrastive losses over the features of a batch, of one or of several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lazy import names_from

if TYPE_CHECKING:
    from tessera.model.losses.base import ContrastiveLoss
    from tessera.model.losses.build import build_loss
    from tessera.model.losses.clip import clip_loss
    from tessera.model.losses.config import LossConfig
    from tessera.model.losses.distillation import DistillationLoss, distillation_loss

__all__ = [
    "ContrastiveLoss",
    "DistillationLoss",
    "LossConfig",
    "build_loss",
    "clip_loss",
    "distillation_loss",
]

_HOMES = {
    "ContrastiveLoss": "base",
    "DistillationLoss": "distillation",
    "LossConfig": "config",
    "build_loss": "build",
    "clip_loss": "clip",
    "distillation_loss": "distillation",
}

__getattr__ = names_from(__name__, _HOMES)
