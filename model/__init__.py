"""Packed patches and tokens to CLIP features, and the losses over them."""

from model import open_clip_weights
from model.clip import Clip, build_clip
from model.config import ClipConfig, TextConfig, VisionConfig
from model.loss import clip_loss

__all__ = [
    "Clip",
    "ClipConfig",
    "TextConfig",
    "VisionConfig",
    "build_clip",
    "clip_loss",
    "open_clip_weights",
]
