"""Further captions for the samples of an index: readers, joins and the writer."""

from tessera.pipeline.caption_sources.importing import ImportOptions, ImportReport, import_captions
from tessera.pipeline.caption_sources.laclip import LaclipReader
from tessera.pipeline.caption_sources.rows import Reader, RowBatch, ShardFieldReader, TableReader

__all__ = [
    "ImportOptions",
    "ImportReport",
    "LaclipReader",
    "Reader",
    "RowBatch",
    "ShardFieldReader",
    "TableReader",
    "import_captions",
]
