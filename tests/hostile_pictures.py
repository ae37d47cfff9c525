"""Pictures that the hostile server serves: each follows from its number alone."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SHORTEST_SIDE, LONGEST_SIDE = 80, 420
"""Pixels: pictures lie between these, except those that are meant not to."""


def size_of(number: int) -> tuple[int, int]:
    """Width and height in pixels of the upright picture with this number."""
    rng = np.random.default_rng([number, 1])
    width, height = rng.integers(SHORTEST_SIDE, LONGEST_SIDE, 2, endpoint=True)
    return min(int(width), int(height) * 3), min(int(height), int(width) * 3)


def pixels_of(number: int) -> np.ndarray:
    """The picture itself: [height, width, 3] uint8, four corners in colours of its own."""
    width, height = size_of(number)
    rng = np.random.default_rng([number, 2])
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.float64)
    down = np.linspace(0, 1, height)[:, None, None]
    across = np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - across) + corners[0, 1] * across
    bottom = corners[1, 0] * (1 - across) + corners[1, 1] * across
    return np.rint(top * (1 - down) + bottom * down).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def jpeg_of(number: int) -> bytes:
    """What `good/NUMBER.jpg` serves."""
    return encoded(Image.fromarray(pixels_of(number)), "JPEG", quality=92)


def rotated_jpeg(number: int, orientation: int) -> bytes:
    """A JPEG stored in another direction, with the EXIF orientation that undoes it."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(pixels_of(number))
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, "JPEG", quality=92, exif=exif)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16_of(number: int) -> bytes:
    """A 16-bit RGB PNG; Pillow cannot write one, so the chunks are put together here."""
    wide = pixels_of(number).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    header = struct.pack(">IIBBBBB", wide.shape[1], wide.shape[0], 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", zlib.compress(rows))
        + _png_chunk(b"IEND", b"")
    )


@functools.cache
def pixel_bomb(side: int = 12_000) -> bytes:
    """A PNG of side * side pixels in a few kilobytes."""
    row = b"\0" + bytes((side + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", body)
        + _png_chunk(b"IEND", b"")
    )


def _mode(mode: str, kind: str, **options: object) -> Callable[[int], bytes]:
    def make(number: int) -> bytes:
        return encoded(Image.fromarray(pixels_of(number)).convert(mode), kind, **options)

    return make


def _transparent(number: int) -> bytes:
    image = Image.fromarray(pixels_of(number)).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 128))
    return encoded(image, "PNG")


def _animation(number: int) -> bytes:
    first = Image.fromarray(pixels_of(number))
    second = Image.new("RGB", first.size, (0, 0, 0))
    return encoded(first, "GIF", save_all=True, append_images=[second], duration=100, loop=0)


def plain(width: int, height: int, kind: str = "JPEG") -> Callable[[int], bytes]:
    return lambda number: encoded(Image.new("RGB", (width, height), (number % 256, 90, 30)), kind)


PICTURES: dict[str, Callable[[int], bytes]] = {
    "good": jpeg_of,
    "progressive": _mode("RGB", "JPEG", quality=92, progressive=True),
    "png": _mode("RGB", "PNG"),
    "palette": _mode("P", "PNG"),
    "webp": _mode("RGB", "WEBP", quality=95),
    "bmp": _mode("RGB", "BMP"),
    "tiff": _mode("RGB", "TIFF"),
    "gif": _mode("RGB", "GIF"),
    "animation": _animation,
    "cmyk": _mode("CMYK", "JPEG", quality=95),
    "grey": _mode("L", "JPEG", quality=95),
    "png16": png16_of,
    "transparent": _transparent,
    **{f"exif{n}": (lambda number, n=n: rotated_jpeg(number, n)) for n in range(1, 9)},
}
"""Kinds that hold a usable picture of `size_of(number)`."""
