"""The mask of a run, as it is written in a recipe or on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.masking.blind import BlockMask, GridMask, NoMask, RandomMask
from pipeline.masking.cluster import ClusterMask
from pipeline.masking.strategy import MaskStrategy


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which patches are hidden from the model in training. Evaluation hides none."""

    kind: Literal["none", "random", "grid", "block", "cluster"] = "cluster"
    """Strategy: none (CLIP), random (FLIP), grid and block (CLIPA), cluster (Cluster Masking)."""
    mask_ratio: float = 0.5
    """Share of patches dropped, 0 to 1; not used by kind none."""
    anchor_ratio: float = 0.03
    """cluster: share of an image's patches drawn as anchors."""
    min_mask_ratio: float = 0.3
    """cluster: share of each image's patches dropped at least, 0 to mask_ratio."""
    threshold: float | None = None
    """cluster: fixed similarity threshold, -1 to 1; None meets mask_ratio exactly in each batch."""

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> MaskStrategy:
        """The strategy itself.

        Raises:
            ValueError: a value is out of its range, or unknown.
        """
        if self.kind == "none":
            return NoMask()
        if self.kind == "random":
            return RandomMask(self.mask_ratio)
        if self.kind == "grid":
            return GridMask(self.mask_ratio)
        if self.kind == "block":
            return BlockMask(self.mask_ratio)
        if self.kind == "cluster":
            return ClusterMask(
                anchor_ratio=self.anchor_ratio,
                mask_ratio=self.mask_ratio,
                min_mask_ratio=self.min_mask_ratio,
                threshold=self.threshold,
            )
        raise ValueError(f"unknown mask kind {self.kind!r}: none, random, grid, block or cluster")
