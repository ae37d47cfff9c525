"""k-means clusters: the ablation row of Cluster Masking (Wei, Pan, Owens, CVPR 2024).

The paper reports it as slower than anchors and no better, and gives neither k nor the rule by which
clusters are dropped. Here every patch belongs to one of k clusters, found by Lloyd's iterations on
standardised patches (so that distance is correlation, as for anchors), and whole clusters are
dropped in random order until the ratio is reached; the last one is cut at random.

Legend: B images, N patches of an image, D values of a patch, k clusters of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from pipeline.masking.strategy import MaskStrategy, check_ratio, keep_lowest
from pipeline.patches import normalise

_CHUNK = 8
"""Images at once."""


@dataclass(frozen=True)
class KMeansMask(MaskStrategy):
    """Drop whole k-means clusters of each image, the same number of patches from every image."""

    mask_ratio: float = 0.5
    """Share of each image's patches dropped; N*(1-mask_ratio) is truncated."""
    num_clusters: int = 8
    """k, at most N."""
    num_iterations: int = 10
    """Lloyd's iterations; a fixed number, so that nothing waits for convergence."""

    def __post_init__(self) -> None:
        check_ratio("mask_ratio", self.mask_ratio)
        if self.num_clusters < 2 or self.num_iterations < 1:
            raise ValueError(
                f"k-means needs 2 clusters and 1 iteration or more, got {self.num_clusters} and "
                f"{self.num_iterations}"
            )

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """[B, N] bool with int(N * (1 - mask_ratio)) True in each row, at least one."""
        count = max(1, int(noise.shape[1] * (1 - self.mask_ratio) + 1e-9))
        cluster = self.assign(patches, noise)
        # The first centres are the patches of highest noise; their lower digits order the clusters.
        draws = (noise.topk(min(self.num_clusters, noise.shape[1]), dim=1).values * 4096) % 1
        rank = draws.argsort(dim=1).argsort(dim=1)
        return keep_lowest(rank.gather(1, cluster) + noise, count)

    def assign(self, patches: Tensor, noise: Tensor) -> Tensor:
        """Cluster of every patch, [B, N] long in 0 .. k-1; the first centres are drawn by noise."""
        parts = [
            self._lloyd(some, draws)
            for some, draws in zip(patches.split(_CHUNK), noise.split(_CHUNK), strict=True)
        ]
        return torch.cat(parts)

    def _lloyd(self, patches: Tensor, noise: Tensor) -> Tensor:
        values = normalise(patches) if patches.dtype == torch.uint8 else patches.float()
        units = normalize(values - values.mean(dim=2, keepdim=True), dim=2)
        num_clusters = min(self.num_clusters, units.shape[1])
        first = noise.topk(num_clusters, dim=1).indices
        centres = units.gather(1, first[:, :, None].expand(-1, -1, units.shape[2]))
        cluster = torch.bmm(units, centres.mT).argmax(dim=2)
        for _ in range(self.num_iterations - 1):
            members = one_hot(cluster, num_clusters).to(units.dtype)
            means = normalize(torch.bmm(members.mT, units), dim=2)
            # A cluster that lost all its patches stays where it was.
            centres = torch.where(members.sum(dim=1)[:, :, None] > 0, means, centres)
            cluster = torch.bmm(units, centres.mT).argmax(dim=2)
        return cluster
