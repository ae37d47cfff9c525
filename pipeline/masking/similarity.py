"""How much every patch resembles the anchors of its image: Pearson correlation, anchors only.

Three ways lead to the same numbers. `_correlate` follows the definition: remove each patch's mean,
scale to length 1, multiply. For uint8 patches there are compiled C on a CPU (`native_similarity`)
and Triton on CUDA (`triton_cluster`).

Legend: B images, N patches of an image, D values of a patch, A anchors of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tessera.pipeline.masking import native_similarity
from tessera.pipeline.patches import normalise

_FLAT = 1e-5
"""Below this ratio of centred to plain norm a patch is flat: the rest is float32 rounding."""
_CHUNK = 8
"""Images at once on a CPU; more copies would leave its cache, fewer cost more calls."""


def anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor:
    """Correlate every patch with the anchors of its image.

    Only A x N products are formed for an image, not N x N. A flat patch, whose values are all
    equal, has no correlation with anything: its similarity is 0, never NaN. An anchor always has
    similarity 1 to itself.

    Args:
        patches: [B, N, D]; float, or uint8 which is normalised first.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N, A] float32 in -1 .. 1.
    """
    if patches.is_cuda and patches.dtype == torch.uint8:
        from tessera.pipeline.masking import triton_cluster

        return triton_cluster.anchor_similarity(patches, anchors)
    chunk = _CHUNK if patches.device.type == "cpu" else max(1, len(patches))
    parts = [
        _correlate(some, places)
        for some, places in zip(patches.split(chunk), anchors.split(chunk), strict=True)
    ]
    return torch.cat(parts).scatter_(2, anchors[:, :, None], 1.0).clamp_(-1, 1).mT


def max_anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor:
    """Similarity of every patch to the anchor it resembles most.

    Args:
        patches: [B, N, D]; float, or uint8 which is normalised first.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N] float32 in -1 .. 1; exactly 1 at the anchors.
    """
    if patches.dtype != torch.uint8:
        return anchor_similarity(patches, anchors).amax(dim=2)
    if patches.is_cuda:
        from tessera.pipeline.masking import triton_cluster

        return triton_cluster.max_anchor_similarity(patches, anchors)
    similarity = native_similarity.max_anchor_similarity(patches, anchors)
    if similarity is None:
        return anchor_similarity(patches, anchors).amax(dim=2)
    return similarity


def rows_of(values: Tensor, places: Tensor) -> Tensor:
    """Rows [B, A, D] of values [B, N, D] at places [B, A]."""
    return values[torch.arange(len(places), device=places.device)[:, None], places]


def _correlate(patches: Tensor, anchors: Tensor) -> Tensor:
    """[B, A, N] by the definition."""
    values = normalise(patches) if patches.dtype == torch.uint8 else patches.float()
    mean = values.mean(dim=2, keepdim=True)
    # In place only on our own copy: a caller's float patches stay as they are.
    centred = values.sub_(mean) if values is not patches else values - mean
    inverse = _inverse_norm(centred, mean)
    units = rows_of(centred, anchors) * rows_of(inverse, anchors)
    return torch.bmm(units, centred.mT).mul_(inverse.mT)


def _inverse_norm(centred: Tensor, mean: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(centred, dim=2, keepdim=True)
    plain = torch.hypot(norm, mean * centred.shape[2] ** 0.5)
    return torch.where(norm > _FLAT * plain, 1 / norm, torch.zeros_like(norm))
