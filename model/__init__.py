"""Packed patches and tokens to CLIP features, and the losses over them."""

from model import hugging_face, open_clip_weights
from model.clip import Clip, build_clip
from model.config import AdapterConfig, ClipConfig, TextConfig, VisionConfig
from model.losses import ContrastiveLoss, LossConfig, build_loss, clip_loss
from model.pretrained import load_pretrained

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
