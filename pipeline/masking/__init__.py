"""Mask strategies: patches [B, N, D] to visible [B, N], before the model sees anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lazy import names_from

if TYPE_CHECKING:
    from tessera.pipeline.masking.blind import BlockMask, GridMask, NoMask, RandomMask
    from tessera.pipeline.masking.cluster import ClusterMask
    from tessera.pipeline.masking.config import MaskConfig
    from tessera.pipeline.masking.edge_aware import EdgeAwareMask
    from tessera.pipeline.masking.embedding import PatchEmbedding
    from tessera.pipeline.masking.kmeans import KMeansMask
    from tessera.pipeline.masking.packing import pack_visible
    from tessera.pipeline.masking.similarity import anchor_similarity, max_anchor_similarity
    from tessera.pipeline.masking.strategy import Clusters, MaskStrategy

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

_HOMES = {
    "BlockMask": "blind",
    "ClusterMask": "cluster",
    "Clusters": "strategy",
    "EdgeAwareMask": "edge_aware",
    "GridMask": "blind",
    "KMeansMask": "kmeans",
    "MaskConfig": "config",
    "MaskStrategy": "strategy",
    "NoMask": "blind",
    "PatchEmbedding": "embedding",
    "RandomMask": "blind",
    "anchor_similarity": "similarity",
    "max_anchor_similarity": "similarity",
    "pack_visible": "packing",
}

__getattr__ = names_from(__name__, _HOMES)
