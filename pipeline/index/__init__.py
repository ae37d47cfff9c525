"""What is in the shards: their index, how it is made, and how it is opened.

Names are imported on first use: whoever opens an index needs nothing that makes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lazy import names_from

if TYPE_CHECKING:
    from tessera.pipeline.index.build import build_index, scan_part
    from tessera.pipeline.index.open import (
        CAPTIONS_DIR,
        COLUMN_FIELD,
        COLUMNS_DIR,
        DEFAULT_SOURCE,
        FORMAT_VERSION,
        INDEX_FILE,
        REJECTED_FILE,
        REJECTED_SCHEMA,
        SAMPLE_SCHEMA,
        SAMPLES_FILE,
        SOURCE_SEPARATOR,
        Index,
        open_index,
        read_manifest,
    )
    from tessera.pipeline.index.options import ScanOptions
    from tessera.pipeline.index.parts import Part, PartReport
    from tessera.pipeline.index.report import IndexReport
    from tessera.pipeline.index.shard_record import ShardRecord

__all__ = [
    "CAPTIONS_DIR",
    "COLUMN_FIELD",
    "COLUMNS_DIR",
    "DEFAULT_SOURCE",
    "FORMAT_VERSION",
    "INDEX_FILE",
    "REJECTED_FILE",
    "REJECTED_SCHEMA",
    "SAMPLES_FILE",
    "SAMPLE_SCHEMA",
    "SOURCE_SEPARATOR",
    "Index",
    "IndexReport",
    "Part",
    "PartReport",
    "ScanOptions",
    "ShardRecord",
    "build_index",
    "open_index",
    "read_manifest",
    "scan_part",
]
_HOMES = dict.fromkeys(__all__, "open") | {
    "IndexReport": "report",
    "Part": "parts",
    "PartReport": "parts",
    "ScanOptions": "options",
    "ShardRecord": "shard_record",
    "build_index": "build",
    "scan_part": "build",
}

__getattr__ = names_from(__name__, _HOMES)
