"""Contrastive losses over the features of a batch, of one or of several ranks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Import on first use: the losses' configuration needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
