"""Further captions for the samples of an index: readers, joins and the writer."""

from tessera.pipeline.caption_sources.importing import ImportOptions, ImportReport, import_captions
from tessera.pipeline.caption_sources.joins import (
    Join,
    KeyJoin,
    RowJoin,
    SampleOrderJoin,
    ValueJoin,
)
from tessera.pipeline.caption_sources.laclip import LaclipReader
from tessera.pipeline.caption_sources.rows import Reader
from tessera.pipeline.caption_sources.shard_fields import ShardFieldReader
from tessera.pipeline.caption_sources.tables import TableReader

__all__ = [
    "ImportOptions",
    "ImportReport",
    "Join",
    "KeyJoin",
    "LaclipReader",
    "Reader",
    "RowJoin",
    "SampleOrderJoin",
    "ShardFieldReader",
    "TableReader",
    "ValueJoin",
    "import_captions",
]
