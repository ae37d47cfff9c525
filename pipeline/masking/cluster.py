"""Cluster masking: drop whole groups of patches that look alike (Wei, Pan, Owens, CVPR 2024).

A few patches of each image are drawn as anchors; what resembles an anchor is its cluster, and
clusters are dropped. Resemblance is the cosine of two patches after each was standardised over its
own D values, which is their Pearson correlation: brightness and contrast do not count.

Legend: B images, N patches of an image, D values of a patch, A anchors of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import torch
from torch import Tensor

from pipeline.masking.strategy import MaskStrategy, check_ratio, keep_lowest
from pipeline.patches import normalise

_FLAT = 1e-5
"""Below this ratio of centred to plain norm a patch is flat: the rest is float32 rounding."""
_CHUNK = 4
"""Images standardised at once; their float copies then stay in the cache of a CPU core."""


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
    parts = [
        _correlate(some, places)
        for some, places in zip(patches.split(_CHUNK), anchors.split(_CHUNK), strict=True)
    ]
    similarity = torch.cat(parts)
    itself = torch.arange(anchors.shape[1], device=anchors.device).expand_as(anchors)
    images = torch.arange(len(anchors), device=anchors.device)[:, None]
    similarity[images, anchors, itself] = 1.0
    return similarity


def max_anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor:
    """Similarity of every patch to the anchor it resembles most.

    Args:
        patches: [B, N, D]; float, or uint8 which is normalised first.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N] float32 in -1 .. 1; exactly 1 at the anchors.
    """
    return anchor_similarity(patches, anchors).amax(dim=2)


@dataclass(frozen=True)
class ClusterMask(MaskStrategy):
    """Drop the clusters around random anchors.

    Without a `threshold` the batch has a budget: of all its B*N patches exactly
    round(B*N*(1 - mask_ratio)) stay, those least similar to the anchors of their image, so the
    cluster radius follows from the batch. Images then differ in how much they lose, within each
    image's own bounds, and the total never varies. The budget is the one random choice that depends
    on which samples share a batch.

    With a `threshold` r every patch with similarity above r is dropped, as the paper does, within
    the same bounds, and the total varies.

    Source: facts of the released code and the deviations from it are in docs/pipeline.md.
    """

    anchor_ratio: float = 0.03
    """Share of an image's patches drawn as anchors; rounded up, 6 of 196."""
    mask_ratio: float = 0.5
    """Share of the batch's patches dropped, anchors included; not used with a threshold."""
    min_mask_ratio: float = 0.3
    """Share of each image's patches dropped at least; the paper's beta."""
    threshold: float | None = None
    """Similarity above which a patch belongs to a cluster; None chooses it for each batch."""
    min_visible: int = 4
    """Patches of each image that stay at least."""

    def __post_init__(self) -> None:
        for name in ("anchor_ratio", "mask_ratio", "min_mask_ratio"):
            check_ratio(name, getattr(self, name))
        if self.anchor_ratio == 0:
            raise ValueError("anchor_ratio must be above 0: without anchors there is no cluster")
        if self.threshold is None and self.min_mask_ratio > self.mask_ratio:
            raise ValueError(
                f"min_mask_ratio {self.min_mask_ratio} (of each image) is above mask_ratio "
                f"{self.mask_ratio} (of the batch): lower the first or raise the second"
            )

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """[B, N] bool; exactly round(B*N*(1-mask_ratio)) True unless a threshold is set."""
        similarity = max_anchor_similarity(patches, self.draw_anchors(noise))
        if self.threshold is None:
            return self._within_budget(similarity, noise)
        return self._below_threshold(similarity, noise)

    def draw_anchors(self, noise: Tensor) -> Tensor:
        """Places of the anchors, without replacement: [B, N] noise to [B, A] long."""
        num_patches = noise.shape[1]
        num_anchors = num_patches - floor(num_patches * (1 - self.anchor_ratio) + 1e-9)
        return noise.topk(max(1, num_anchors), dim=1).indices

    def _within_budget(self, similarity: Tensor, noise: Tensor) -> Tensor:
        num_images, num_patches = similarity.shape
        total = round(num_images * num_patches * (1 - self.mask_ratio))
        least, most = self._bounds(num_patches)
        # The budget is met whatever the bounds: they give way where rounding makes them clash.
        least, most = min(least, total // num_images), max(most, ceil(total / num_images))
        key = _sort_key(similarity, noise)
        rank = key.argsort(dim=1).argsort(dim=1)
        key = key.masked_fill(rank < least, torch.iinfo(torch.int64).min)
        key = key.masked_fill(rank >= most, torch.iinfo(torch.int64).max)
        chosen = key.flatten().topk(total, largest=False, sorted=False).indices
        visible = torch.zeros(num_images * num_patches, dtype=torch.bool, device=key.device)
        return visible.scatter_(0, chosen, True).view(num_images, num_patches)

    def _below_threshold(self, similarity: Tensor, noise: Tensor) -> Tensor:
        assert self.threshold is not None
        least, most = self._bounds(similarity.shape[1])
        outside = similarity <= self.threshold
        count = outside.sum(dim=1, keepdim=True).clamp(least, most)
        # Patches outside all clusters come first, in random order, so that what is cut beyond
        # `most` is spread over the picture; then the clusters, the least similar first.
        order = torch.where(outside, noise, 2 + similarity)
        return keep_lowest(order, count)

    def _bounds(self, num_patches: int) -> tuple[int, int]:
        most = max(1, floor(num_patches * (1 - self.min_mask_ratio) + 1e-9))
        return min(self.min_visible, most), most


def _correlate(patches: Tensor, anchors: Tensor) -> Tensor:
    values = normalise(patches) if patches.dtype == torch.uint8 else patches.float()
    mean = values.mean(dim=2, keepdim=True)
    # In place only on our own copy: a caller's float patches stay as they are.
    centred = values.sub_(mean) if values is not patches else values - mean
    norm = torch.linalg.vector_norm(centred, dim=2, keepdim=True)
    plain = torch.hypot(norm, mean * patches.shape[2] ** 0.5)
    inverse = torch.where(norm > _FLAT * plain, 1 / norm, torch.zeros_like(norm))
    images = torch.arange(len(anchors), device=anchors.device)[:, None]
    anchor_units = centred[images, anchors] * inverse[images, anchors]
    return torch.bmm(centred, anchor_units.mT) * inverse


def _sort_key(similarity: Tensor, noise: Tensor) -> Tensor:
    """Order by similarity and break ties by noise, in one int64: equal patches fall at random."""
    bits = (similarity + 0.0).contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 24) | (noise * 2**24).long()
