"""Pack a person's own pictures and captions into WebDataset shards."""

from pipeline.sharding.image_bytes import ImageOptions
from pipeline.sharding.shards import PackOptions, PackReport, make_shards
from pipeline.sharding.sources import SourceOptions, open_source

__all__ = [
    "ImageOptions",
    "PackOptions",
    "PackReport",
    "SourceOptions",
    "make_shards",
    "open_source",
]
