"""Mask strategies: patches [B, N, D] to visible [B, N], before the model sees anything."""

from pipeline.masking.blind import BlockMask, GridMask, NoMask, RandomMask
from pipeline.masking.cluster import ClusterMask, anchor_similarity, max_anchor_similarity
from pipeline.masking.config import MaskConfig
from pipeline.masking.strategy import MaskStrategy

__all__ = [
    "BlockMask",
    "ClusterMask",
    "GridMask",
    "MaskConfig",
    "MaskStrategy",
    "NoMask",
    "RandomMask",
    "anchor_similarity",
    "max_anchor_similarity",
]
