"""Mask strategies: patches [B, N, D] to visible [B, N], before the model sees anything."""

from pipeline.masking.blind import BlockMask, GridMask, NoMask, RandomMask
from pipeline.masking.cluster import ClusterMask
from pipeline.masking.config import MaskConfig
from pipeline.masking.edge_aware import EdgeAwareMask
from pipeline.masking.embedding import PatchEmbedding
from pipeline.masking.kmeans import KMeansMask
from pipeline.masking.packing import pack_visible
from pipeline.masking.similarity import anchor_similarity, max_anchor_similarity
from pipeline.masking.strategy import Clusters, MaskStrategy

__all__ = [
    "BlockMask",
    "ClusterMask",
    "Clusters",
    "EdgeAwareMask",
    "GridMask",
    "KMeansMask",
    "MaskConfig",
    "MaskStrategy",
    "NoMask",
    "PatchEmbedding",
    "RandomMask",
    "anchor_similarity",
    "max_anchor_similarity",
    "pack_visible",
]
