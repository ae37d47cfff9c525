"""Pack a person's own pictures and captions into WebDataset shards."""

from tessera.tools.sharding.images import ImageOptions, prepare_image
from tessera.tools.sharding.samples import Skipped, SkippedError, SkipReason
from tessera.tools.sharding.shards import PackOptions, PackReport, make_shards
from tessera.tools.sharding.sources import SourceOptions, open_source

__all__ = [
    "ImageOptions",
    "PackOptions",
    "PackReport",
    "SkipReason",
    "Skipped",
    "SkippedError",
    "SourceOptions",
    "make_shards",
    "open_source",
    "prepare_image",
]
