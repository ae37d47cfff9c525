"""Losses over the features of a batch.

A loss takes unit features of images and texts, pair i in row i of both, and the logit scale,
and returns a scalar. Whatever else a loss keeps (per-sample state, ranks) it holds itself, so
that the training step calls each the same way.

Shapes: B image-text pairs, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE: cross-entropy of picking the right text, and the right image.

    Radford et al. 2021, figure 3. Computed in float32 also under autocast: at a logit scale of
    100 a bfloat16 logit is off by up to a quarter.

    Args:
        image_features: [B, d], unit length.
        text_features: [B, d], unit length.
        logit_scale: [], factor on the similarities (not its logarithm).

    Returns:
        [] float32, the mean of the two directions, each a mean over the batch.

    Raises:
        ValueError: The features are not two matrices of the same shape.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "image and text features must both be [B, d], got "
            f"{list(image_features.shape)} and {list(text_features.shape)}"
        )
    with torch.autocast(image_features.device.type, enabled=False):
        logits = logit_scale.float() * image_features.float() @ text_features.float().T
        labels = torch.arange(logits.shape[0], device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
