"""The data pipeline: from bytes on disk to packed batches of visible patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lazy import names_from

if TYPE_CHECKING:
    from tessera.pipeline.batch import DenseBatch, PackedBatch
    from tessera.pipeline.loader import Loader, open_evaluation_loader, open_loader
    from tessera.pipeline.loader_config import LoaderConfig

__all__ = [
    "DenseBatch", "Loader", "LoaderConfig", "PackedBatch", "open_evaluation_loader", "open_loader",
]  # fmt: skip

_HOMES = {
    "DenseBatch": "batch",
    "Loader": "loader",
    "LoaderConfig": "loader_config",
    "PackedBatch": "batch",
    "open_evaluation_loader": "loader",
    "open_loader": "loader",
}

__getattr__ = names_from(__name__, _HOMES)
