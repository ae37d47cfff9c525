"""Selections: rows of an index kept by an expression, named as `INDEX@NAME`, nothing copied."""

from __future__ import annotations

from tessera.pipeline.selection.reference import (
    Dataset,
    Reference,
    num_shared,
    open_dataset,
    parse_reference,
)
from tessera.pipeline.selection.stored import (
    Selection,
    list_selections,
    open_selection,
    remove_selection,
    write_selection,
)

__all__ = [
    "Dataset",
    "Reference",
    "Selection",
    "list_selections",
    "num_shared",
    "open_dataset",
    "open_selection",
    "parse_reference",
    "remove_selection",
    "write_selection",
]
