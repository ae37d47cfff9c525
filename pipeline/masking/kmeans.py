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

from tessera.pipeline.masking.config import check_num_clusters, check_ratio
from tessera.pipeline.masking.similarity import rows_of
from tessera.pipeline.masking.strategy import Clusters, MaskStrategy, keep_lowest, num_kept
from tessera.pipeline.patches import normalise

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
        check_num_clusters(self.num_clusters)
        if self.num_iterations < 1:
            raise ValueError(f"k-means needs 1 iteration or more, got {self.num_iterations}")

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """[B, N] bool with int(N * (1 - mask_ratio)) True in each row, at least one."""
        count = num_kept(noise.shape[1], self.mask_ratio)
        cluster = self.clusters(patches, noise).members
        # The first centres are the patches of highest noise; their lower digits order the clusters.
        draws = (noise.topk(min(self.num_clusters, noise.shape[1]), dim=1).values * 4096) % 1
        rank = draws.argsort(dim=1).argsort(dim=1)
        return keep_lowest(rank.gather(1, cluster) + noise, count)

    def num_visible(self, num_images: int, num_patches: int) -> int:
        """The same of every image."""
        return num_images * num_kept(num_patches, self.mask_ratio)

    def clusters(self, patches: Tensor, noise: Tensor) -> Clusters:
        """Cluster of every patch; the first centres are patches drawn by noise."""
        seeds = noise.topk(min(self.num_clusters, noise.shape[1]), dim=1).indices
        parts = [
            self._lloyd(some, first)
            for some, first in zip(patches.split(_CHUNK), seeds.split(_CHUNK), strict=True)
        ]
        return Clusters(members=torch.cat(parts), seeds=seeds)

    def _lloyd(self, patches: Tensor, first: Tensor) -> Tensor:
        values = normalise(patches) if patches.dtype == torch.uint8 else patches.float()
        units = normalize(values - values.mean(dim=2, keepdim=True), dim=2)
        num_clusters = first.shape[1]
        centres = rows_of(units, first)
        cluster = torch.bmm(units, centres.mT).argmax(dim=2)
        for _ in range(self.num_iterations - 1):
            members = one_hot(cluster, num_clusters).to(units.dtype)
            means = normalize(torch.bmm(members.mT, units), dim=2)
            # A cluster that lost all its patches stays where it was.
            centres = torch.where(members.sum(dim=1)[:, :, None] > 0, means, centres)
            cluster = torch.bmm(units, centres.mT).argmax(dim=2)
        return cluster
