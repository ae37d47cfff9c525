"""Cluster masking: drop whole groups of patches that look alike (Wei, Pan, Owens, CVPR 2024).

A few patches of each image are drawn as anchors; what resembles an anchor is its cluster, and
clusters are dropped. Resemblance is the cosine of two patches after each was standardised over its
own D values, which is their Pearson correlation: brightness and contrast do not count.

Legend: B images, N patches of an image, D values of a patch, A anchors of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import floor
from typing import Self

import torch
from torch import Tensor

from tessera.pipeline.masking.budget import (
    below_threshold,
    budget,
    fill_up,
    find_threshold,
    least_similar,
    within_budget,
)
from tessera.pipeline.masking.config import ClusterSettings
from tessera.pipeline.masking.embedding import PatchEmbedding
from tessera.pipeline.masking.similarity import anchor_similarity, max_anchor_similarity
from tessera.pipeline.masking.strategy import Clusters, MaskStrategy, num_kept


@dataclass(frozen=True)
class ClusterMask(ClusterSettings, MaskStrategy):
    """Drop the clusters around random anchors. How much is dropped is a question of the mode.

    budget: of the B*N patches of a group of images exactly round(B*N*(1 - mask_ratio)) stay, those
        least similar to the anchors of their image. The cluster radius follows from the group;
        images differ in how much they lose, within bounds, and the total never varies. It is the
        one random choice that depends on which samples share a group.
    threshold: every patch with similarity above a fixed r is dropped, within the same bounds, as in
        the paper. r is given, or found by `calibrate`.
    topk: the int(N * (1 - mask_ratio)) least similar patches of every image stay.
    fill: the released code's way. Of every image floor(N * (1 - min_mask_ratio)) patches stay:
        those outside all clusters first, then patches of the clusters, let back in at random.

    Source: facts of the released code and the deviations from it are in docs/pipeline.md.
    """

    min_visible: int = 4
    """Patches of each image that stay at least; budget and threshold."""
    embedding: PatchEmbedding | None = field(default=None, compare=False)
    """Current patch projection, mixed into the similarity; None compares pixels only."""

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has to be called before a mask can be made."""
        return self.resolved_mode == "threshold" and self.threshold is None

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """Choose the visible patches of each image.

        Raises:
            ValueError: mode threshold has no threshold yet.
        """
        return self.choose(self.similarity(patches, noise), noise)

    def similarity(self, patches: Tensor, noise: Tensor) -> Tensor:
        """Similarity to the nearest anchor, [B, N]; what `calibrate` and `choose` go by."""
        anchors = self.draw_anchors(patches, noise)
        if self.embedding is not None and self.embedding.alpha:
            return self.by_anchor(patches, anchors).amax(dim=2)
        return max_anchor_similarity(patches, anchors)

    def clusters(self, patches: Tensor, noise: Tensor) -> Clusters:
        """Every patch with the anchor that it is most similar to."""
        anchors = self.draw_anchors(patches, noise)
        members = self.by_anchor(patches, anchors).argmax(dim=2)
        return Clusters(members=members, seeds=anchors)

    def by_anchor(self, patches: Tensor, anchors: Tensor) -> Tensor:
        """Similarity of every patch to every anchor, [B, N, A]."""
        if self.embedding is not None and self.embedding.alpha:
            return self.embedding.similarity(patches, anchors)
        return anchor_similarity(patches, anchors)

    def draw_anchors(self, patches: Tensor, noise: Tensor) -> Tensor:
        """Places of the anchors, without replacement: those of highest noise, [B, A] long."""
        del patches
        return noise.topk(self.num_anchors(noise.shape[1]), dim=1).indices

    def num_anchors(self, num_patches: int) -> int:
        """Anchors of an image, A."""
        return max(1, num_patches - floor(num_patches * (1 - self.anchor_ratio) + 1e-9))

    def choose(self, similarity: Tensor, noise: Tensor) -> Tensor:
        """[B, N] similarity and noise to [B, N] visible, by the mode."""
        num_patches = similarity.shape[1]
        least, most = self._bounds(num_patches)
        mode = self.resolved_mode
        if mode == "topk":
            count = num_kept(num_patches, self.mask_ratio)
            return least_similar(similarity, noise, count=count)
        if mode == "fill":
            threshold = self.mask_ratio if self.threshold is None else self.threshold
            return fill_up(similarity, noise, threshold=threshold, count=most)
        if mode == "threshold":
            if self.threshold is None:
                raise ValueError("mode threshold needs a threshold: give one, or call calibrate")
            return below_threshold(
                similarity, noise, threshold=self.threshold, least=least, most=most
            )
        size = self.group_size or len(similarity)
        rest = len(similarity) % size
        parts = [len(similarity) - rest, rest]  # a last group may be short
        visible = [
            within_budget(
                some,
                draws,
                group_size=min(size, len(some)),
                ratio=self.mask_ratio,
                least=least,
                most=most,
            )
            for some, draws in zip(similarity.split(parts), noise.split(parts), strict=True)
            if len(some)
        ]
        return torch.cat(visible)

    def num_visible(self, num_images: int, num_patches: int) -> int | None:
        """Known of every mode but threshold."""
        mode = self.resolved_mode
        if mode == "threshold":
            return None
        if mode == "topk":
            return num_images * num_kept(num_patches, self.mask_ratio)
        if mode == "fill":
            return num_images * self._bounds(num_patches)[1]
        size = self.group_size or max(1, num_images)
        whole, rest = divmod(num_images, size)
        ratio = self.mask_ratio
        return whole * budget(size, num_patches, ratio) + budget(rest, num_patches, ratio)

    def most_visible(self, num_patches: int) -> int:
        """What `min_mask_ratio` leaves, or a little more where the budget itself does."""
        if self.resolved_mode == "topk":
            return num_kept(num_patches, self.mask_ratio)
        # A group's total is rounded, and its even share is rounded up.
        even_share = floor(num_patches * (1 - self.mask_ratio)) + 2
        in_budget = even_share if self.resolved_mode == "budget" else 0
        return min(num_patches, max(self._bounds(num_patches)[1], in_budget))

    def calibrate(
        self,
        similarities: Iterable[Tensor],
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Self:
        """The same mask with the threshold that drops mask_ratio on average.

        Call it before the first batch, and again whenever the embedding has moved.

        Args:
            similarities: [B, N] of several batches, from `similarity` with seeded noise.
            all_reduce: sums a float64 tensor over all ranks.

        Raises:
            ValueError: not mode threshold, no batch, or no threshold gives mask_ratio.
        """
        if self.resolved_mode != "threshold":
            raise ValueError(f"mode {self.resolved_mode} has no threshold to calibrate")
        threshold = find_threshold(
            similarities,
            mask_ratio=self.mask_ratio,
            bounds=self._bounds,
            all_reduce=all_reduce,
        )
        return replace(self, threshold=threshold)

    def _bounds(self, num_patches: int) -> tuple[int, int]:
        most = max(1, floor(num_patches * (1 - self.min_mask_ratio) + 1e-9))
        return min(self.min_visible, most), most
