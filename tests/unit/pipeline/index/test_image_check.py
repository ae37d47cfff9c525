from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.pipeline.decoding.exif import exif_orientation
from tessera.pipeline.index.image_check import check_image
from tessera.pipeline.index.rejection import Reason, RejectedSampleError


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
    "webp": encoded(photo(), "WEBP"),
    "padded": encoded(photo()) + bytes(300),
    "two_frames": encoded(photo(), "WEBP", save_all=True, append_images=[photo()]),
}


@pytest.mark.parametrize("full_decode", [True, False])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_images_are_accepted(name: str, *, full_decode: bool) -> None:
    assert check_image(UNUSUAL[name], full_decode=full_decode)[:2] == (40, 24)


def test_jpeg_without_end_marker_is_truncated_even_if_its_thumbnail_has_one() -> None:
    thumbnail = encoded(photo())
    whole = encoded(photo(), exif=b"Exif\0\0" + thumbnail)
    assert check_image(whole, full_decode=False)[:2] == (40, 24)
    with pytest.raises(RejectedSampleError) as caught:
        check_image(whole[:-2], full_decode=False)
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


@pytest.mark.parametrize("full_decode", [True, False])
def test_png_of_16_bits_is_unsupported_since_the_decoder_gets_it_wrong(
    *, full_decode: bool
) -> None:
    image = encoded(Image.fromarray(np.full((24, 40), 40_000, np.uint16)), "PNG")
    with pytest.raises(RejectedSampleError) as caught:
        check_image(image, full_decode=full_decode)
    assert caught.value.reason is Reason.UNSUPPORTED_IMAGE


def test_difference_hash_survives_size_and_quality_and_tells_pictures_apart() -> None:
    def distance(one: Image.Image, two: Image.Image, **options: Any) -> int:
        hashes = [
            check_image(encoded(image, **options), full_decode=True, dhash=True).dhash
            for image in (one, two)
        ]
        return (hashes[0] ^ hashes[1]).bit_count()

    noise = np.random.default_rng(0).integers(0, 255, (2, 6, 7, 3), dtype=np.uint8)
    first, other = (Image.fromarray(each).resize((320, 240)) for each in noise)
    assert distance(first, first.resize((200, 150)), quality=60) <= 4
    assert distance(first, other) > 12
