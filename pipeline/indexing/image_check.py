"""Which image files a run can use, and how large they are.

What is accepted is what DALI was seen to decode like Pillow does: JPEG (grey, CMYK and progressive
too), PNG and WebP, by content and whatever the suffix. One file that DALI cannot decode ends its
pipeline, so every doubt is settled here, once.
"""

from __future__ import annotations

from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.decoding.exif import exif_orientation
from pipeline.decoding.jpeg_walk import plain_jpeg
from pipeline.indexing.rejection import Reason, RejectedSampleError

MAX_IMAGE_PIXELS = 100_000_000
"""Pixels that a picture may claim unless another limit is given."""
MAX_IMAGE_BYTES = 256 * 1024**2
"""Bytes that an image file may have unless another limit is given."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
"""Names by Pillow of the formats that an index lets in."""
_PNG_DEPTH_PLACE = 24
_OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"<svg": "SVG",
}


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
        full_decode: decode all of it. Otherwise only its header, and a JPEG's end marker, are
            looked at.
        dhash: compute the difference hash; needs `full_decode`.
        max_pixels: pixels by the header at most, so that a small file cannot claim gigabytes.

    Raises:
        RejectedSampleError: the image cannot be used.
    """
    _check_format(data)
    try:
        image = Image.open(BytesIO(data), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise RejectedSampleError(Reason.TOO_LARGE, str(error)) from None
    except Exception as error:
        raise RejectedSampleError(
            Reason.TRUNCATED_IMAGE, f"no complete header: {error!r}"
        ) from None
    width, height = image.size
    if width * height > max_pixels:
        detail = f"{width}x{height} pixels exceed the limit of {max_pixels}"
        raise RejectedSampleError(Reason.TOO_LARGE, detail)
    if full_decode:
        _decode_fully(image)
    elif image.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise RejectedSampleError(Reason.TRUNCATED_IMAGE, "the JPEG has no end marker")
    exif = image.info.get("exif", b"")
    if isinstance(exif, bytes) and exif_orientation(exif) >= 5:
        width, height = height, width
    return ImageFacts(width, height, plain_jpeg(data), difference_hash(image) if dhash else 0)


def difference_hash(image: Image.Image) -> int:
    """64 bits that say where brightness rises from left to right in a 9x8 reduction.

    Copies of a picture in other sizes and qualities differ in a few bits at most; turned or
    mirrored ones do not match. (N. Krawetz, "Kind of like that", 2013.)
    """
    small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")


def _check_format(data: bytes) -> None:
    """Tell by the first bytes whether this is JPEG, PNG or WebP; the suffix is not believed."""
    if not data:
        raise RejectedSampleError(Reason.EMPTY_IMAGE, "0 bytes")
    if data.startswith(b"\xff\xd8\xff"):
        return
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        if data[_PNG_DEPTH_PLACE : _PNG_DEPTH_PLACE + 1] == b"\x10":
            detail = "16 bits a channel, which DALI decodes wrongly; store it with 8"
            raise RejectedSampleError(Reason.UNSUPPORTED_IMAGE, detail)
        return
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return
    found = next((name for magic, name in _OTHER_FORMATS.items() if data.startswith(magic)), "")
    if data[4:8] == b"ftyp":
        found = f"{data[8:12].decode('ascii', 'backslashreplace').upper()} (AVIF/HEIF family)"
    if found:
        detail = f"it is {found}; only JPEG, PNG and WebP are read"
        raise RejectedSampleError(Reason.UNSUPPORTED_IMAGE, detail)
    raise RejectedSampleError(Reason.NOT_AN_IMAGE, f"it begins with {data[:16]!r}")


def _decode_fully(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:
        text = str(error)
        cut = "truncated" in text.lower() or "unexpected end" in text.lower()
        reason = Reason.TRUNCATED_IMAGE if cut else Reason.DAMAGED_IMAGE
        raise RejectedSampleError(reason, text or repr(error)) from None
