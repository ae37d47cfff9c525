"""Contrastive losses over the features of a batch, of one or of several ranks."""

from model.losses.base import ContrastiveLoss
from model.losses.build import build_loss
from model.losses.clip import clip_loss
from model.losses.config import LossConfig
from model.losses.distillation import DistillationLoss, distillation_loss

__all__ = [
    "ContrastiveLoss",
    "DistillationLoss",
    "LossConfig",
    "build_loss",
    "clip_loss",
    "distillation_loss",
]
