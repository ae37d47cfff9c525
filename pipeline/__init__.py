"""The data pipeline: from bytes on disk to packed batches of visible patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.pipeline.batch import DenseBatch, PackedBatch
    from tessera.pipeline.loader import Loader, open_evaluation_loader, open_loader
    from tessera.pipeline.loader_config import LoaderConfig

__all__ = [
    "DenseBatch", "Loader", "LoaderConfig", "PackedBatch", "open_evaluation_loader", "open_loader",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: whoever only reads an index must not wait for torch."""
    if name in __all__:
        from tessera.pipeline import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
