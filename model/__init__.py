"""Packed patches and tokens to CLIP features, and the losses over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lazy import names_from

if TYPE_CHECKING:
    from tessera.model import hugging_face, open_clip_weights
    from tessera.model.clip import Clip, build_clip
    from tessera.model.config import AdapterConfig, ClipConfig, TextConfig, VisionConfig
    from tessera.model.losses import ContrastiveLoss, LossConfig, build_loss, clip_loss
    from tessera.model.pretrained import load_pretrained

__all__ = [
    "AdapterConfig",
    "Clip",
    "ClipConfig",
    "ContrastiveLoss",
    "LossConfig",
    "TextConfig",
    "VisionConfig",
    "build_clip",
    "build_loss",
    "clip_loss",
    "hugging_face",
    "load_pretrained",
    "open_clip_weights",
]

_HOMES = {
    "AdapterConfig": "config",
    "Clip": "clip",
    "ClipConfig": "config",
    "ContrastiveLoss": "losses",
    "LossConfig": "losses",
    "TextConfig": "config",
    "VisionConfig": "config",
    "build_clip": "clip",
    "build_loss": "losses",
    "clip_loss": "losses",
    "hugging_face": "hugging_face",
    "load_pretrained": "pretrained",
    "open_clip_weights": "open_clip_weights",
}

__getattr__ = names_from(__name__, _HOMES)
