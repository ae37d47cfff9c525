"""Pack a person's own pictures and captions into WebDataset shards."""

from tessera.pipeline.sharding.image_bytes import ImageOptions
from tessera.pipeline.sharding.shards import PackOptions, PackReport, make_shards
from tessera.pipeline.sharding.sources import SourceOptions, open_source

__all__ = [
    "ImageOptions",
    "PackOptions",
    "PackReport",
    "SourceOptions",
    "make_shards",
    "open_source",
]
