"""Pictures to be evaluated, brought to pixels by open_clip's own evaluation transform.

The short side is resized to the model's size (bicubic, antialiased), the centre is cut out, and
pixels are normalised with the model's statistics. As in open_clip, an EXIF orientation is not
looked at; unlike there, what is transparent lies on white, as in training. Training decodes by
other, faster code (pipeline/decoding): its pixels differ by a few levels, which would be enough to
change single predictions.

Legend: M pictures of a set, B of a batch, S side of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tessera.model.config import ClipConfig
from tessera.model.open_clip_config import preprocess_config
from tessera.pipeline.decoding.picture import PICTURE_FORMATS, on_white
from tessera.pipeline.index.dataset import Dataset
from tessera.pipeline.reader import ShardReader

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of files that are taken for pictures; case does not matter."""
IMAGE_FORMATS = (*PICTURE_FORMATS, "BMP", "TIFF")
"""Pillow's names of theirs. It knows others, for one of which (EPS) it starts a program."""

Transform = Callable[[Image.Image], Tensor]
"""A picture to [3, S, S] float32, normalised."""


class ImageSet(Protocol):
    """Pictures with a place 0 .. M - 1 each."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """[M] what a picture's random draws are keyed by, ascending; rows of an index."""
        ...

    def read(self, places: NDArray[np.int64]) -> list[bytes | OSError]:
        """Files of the pictures at `places`, or why one could not be read."""
        ...

    def name(self, place: int) -> str:
        """What a person calls a picture."""
        ...

    def close(self) -> None:
        """Let go of open files."""
        ...


class IndexedImages:
    """The pictures of an index, or of a selection of it."""

    def __init__(self, dataset: Dataset, num_threads: int) -> None:
        """Prepare to read.

        Args:
            dataset: where the pictures lie.
            num_threads: reads in flight.

        Raises:
            FileNotFoundError: a shard has gone.
            ValueError: a shard was changed after it was indexed.
        """
        dataset.index.check_shards()
        self._index = dataset.index
        self._ids = dataset.sample_ids(0, dataset.num_samples)
        self._reader = ShardReader(dataset.index, num_threads)

    @property
    def ids(self) -> NDArray[np.int64]:
        """[M] rows of the index."""
        return self._ids

    def read(self, places: NDArray[np.int64]) -> list[bytes | OSError]:
        """Files of the pictures at `places`."""
        return self._reader.read(self._ids[places])

    def name(self, place: int) -> str:
        """The sample's key."""
        return self._index.keys([int(self._ids[place])])[0]

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()


class ImageFiles:
    """Pictures that lie in files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take the paths; nothing is opened."""
        self._paths = list(paths)

    @property
    def ids(self) -> NDArray[np.int64]:
        """[M] places in the list."""
        return np.arange(len(self._paths))

    def read(self, places: NDArray[np.int64]) -> list[bytes | OSError]:
        """Files of the pictures at `places`."""
        return [_bytes_of(self._paths[place]) for place in places.tolist()]

    def name(self, place: int) -> str:
        """The path."""
        return str(self._paths[place])

    def close(self) -> None:
        """Nothing stays open."""


def evaluation_transform(config: ClipConfig) -> Transform:
    """open_clip's transform for evaluating a model of this size and these pixel statistics."""
    from open_clip.transform import PreprocessCfg, image_transform_v2  # takes seconds

    pixels = PreprocessCfg(size=config.vision.image_size, **preprocess_config(config))
    transform: Any = image_transform_v2(pixels, is_train=False)
    return transform


def decode(data: bytes | OSError, transform: Transform) -> Tensor | str:
    """One file to [S, S, 3] float32, or why that cannot be."""
    if isinstance(data, OSError):
        return str(data)
    try:
        with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as image:
            # Else as it is stored: open_clip resizes palettes and CMYK before they become RGB.
            shown = on_white(image) if image.has_transparency_data else image
            return transform(shown).permute(1, 2, 0)
    except UnidentifiedImageError:  # its own text names the bytes by their place in memory
        return f"it is no picture of a known format ({', '.join(IMAGE_FORMATS)})"
    except Exception as error:  # Pillow raises many kinds (SyntaxError, struct.error, ...)
        return str(error) or type(error).__name__


def _bytes_of(path: Path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error
