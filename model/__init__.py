"""Packed patches and tokens to CLIP features, and the losses over them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "load_pretrained": "pretrained",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a program that only reads configurations must not wait for torch."""
    if name in ("hugging_face", "open_clip_weights"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
