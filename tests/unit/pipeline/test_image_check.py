from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.image_check import checked_size, exif_orientation
from pipeline.rejection import Reason, RejectedSampleError


def photo(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:24, 0:40]
    return Image.fromarray(np.stack([x * 5, y * 9, x + y], -1).astype("uint8")).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


UNUSUAL = {
    "gray": encoded(photo("L")),
    "cmyk": encoded(photo("CMYK")),
    "progressive": encoded(photo(), progressive=True),
    "palette": encoded(photo("P"), "PNG"),
    "rgba": encoded(photo("RGBA"), "PNG"),
    "bits16": encoded(Image.fromarray(np.full((24, 40), 40_000, np.uint16)), "PNG"),
    "webp": encoded(photo(), "WEBP"),
    "padded": encoded(photo()) + bytes(300),
    "two_frames": encoded(photo(), "WEBP", save_all=True, append_images=[photo()]),
}


@pytest.mark.parametrize("full_decode", [True, False])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_images_are_accepted(name: str, *, full_decode: bool) -> None:
    assert checked_size(UNUSUAL[name], full_decode=full_decode) == (40, 24)


def test_jpeg_without_end_marker_is_truncated_even_if_its_thumbnail_has_one() -> None:
    thumbnail = encoded(photo())
    whole = encoded(photo(), exif=b"Exif\0\0" + thumbnail)
    assert checked_size(whole, full_decode=False) == (40, 24)
    with pytest.raises(RejectedSampleError) as caught:
        checked_size(whole[:-2], full_decode=False)
    assert caught.value.reason is Reason.TRUNCATED_IMAGE


def test_orientation_is_read_as_strictly_as_the_decoder_does() -> None:
    def block(endian: str, kind: int, value: int) -> bytes:
        magic = b"II*\0" if endian == "<" else b"MM\0*"
        entry = struct.pack(f"{endian}HHIHH", 0x0112, kind, 1, value, 0)
        return b"Exif\0\0" + magic + struct.pack(f"{endian}IH", 8, 1) + entry

    assert exif_orientation(block("<", 3, 8)) == 8
    assert exif_orientation(block(">", 3, 5)) == 5
    assert exif_orientation(block("<", 4, 6)) == 1
    assert exif_orientation(block("<", 3, 9)) == 1
    assert exif_orientation(block("<", 3, 6)[:-6]) == 1
    assert exif_orientation(b"") == 1
