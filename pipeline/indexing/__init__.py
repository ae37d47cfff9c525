"""Making an index: walk shards, check every sample, tokenise, join. Training needs none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.pipeline.indexing.build import build_index
    from tessera.pipeline.indexing.options import ScanOptions
    from tessera.pipeline.indexing.report import IndexReport

__all__ = ["IndexReport", "ScanOptions", "build_index"]


def __getattr__(name: str) -> Any:
    """Import on first use: whoever only walks a tar needs no tokenizer."""
    from importlib import import_module

    homes = {"build_index": "build", "ScanOptions": "options", "IndexReport": "report"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes[name]}"), name)
