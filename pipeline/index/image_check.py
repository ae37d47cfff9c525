"""Which image files a run can use, and how large they are.

What a picture is, `pipeline.decoding.picture` says, for the index as for the decoders; the limits
are the index's own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from tessera.pipeline.decoding.picture import Picture, PictureError
from tessera.pipeline.index.rejection import Reason, RejectedSampleError

MAX_IMAGE_PIXELS = 100_000_000
"""Pixels that a picture may claim unless another limit is given."""
MAX_IMAGE_BYTES = 256 * 1024**2
"""Bytes that an image file may have unless another limit is given."""


class ImageFacts(NamedTuple):
    """What the index keeps of a sound image file."""

    width: int
    """Pixels, after the EXIF orientation is applied."""
    height: int
    """Pixels, after the EXIF orientation is applied."""
    plain: bool
    """Whether the file is a plain JPEG; see `pipeline.decoding.jpeg_walk`."""
    dhash: int
    """Difference hash, 64 bits; 0 where it was not asked for."""


def check_image(
    data: bytes, *, full_decode: bool, dhash: bool = False, max_pixels: int = MAX_IMAGE_PIXELS
) -> ImageFacts:
    """Check an image file and measure it.

    Args:
        data: the file.
        full_decode: decode all of it; a JPEG is then held to have all its pixels. Otherwise only
            its header, and a JPEG's end marker, are looked at.
        dhash: compute the difference hash; needs `full_decode`.
        max_pixels: pixels by the header at most, so that a small file cannot claim gigabytes.

    Raises:
        RejectedSampleError: the image cannot be used.
    """
    try:
        picture = Picture(data)
        width, height = picture.width, picture.height
        if width * height > max_pixels:
            detail = f"{width}x{height} pixels exceed the limit of {max_pixels}"
            raise RejectedSampleError(Reason.TOO_LARGE, detail)
        if full_decode:
            picture.check_pixels()
        hashed = difference_hash(picture.stored_pixels()) if dhash else 0
    except PictureError as error:
        raise RejectedSampleError(Reason(error.fault), error.detail) from None
    return ImageFacts(width, height, picture.is_plain, hashed)


def difference_hash(image: Image.Image) -> int:
    """64 bits that say where brightness rises from left to right in a 9x8 reduction.

    Copies of a picture in other sizes and qualities differ in a few bits at most; turned or
    mirrored ones do not match. (N. Krawetz, "Kind of like that", 2013.)
    """
    small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")
