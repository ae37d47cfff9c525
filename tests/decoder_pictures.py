"""Pictures that look a little like photos, in every variant of JPEG that matters."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

IMAGE_SIZE = 64


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth colours with a little grain; no two corners are alike."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    grain = generator.normal(0, 3, (height, width, 3))
    pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, format_name: str = "JPEG", **options: Any) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    if format_name == "JPEG":
        options = {"quality": 90} | options
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def with_orientation(data: bytes, orientation: int, endian: str = "II") -> bytes:
    """The JPEG with an EXIF block right behind its first marker."""
    order = "little" if endian == "II" else "big"

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)  # pyright: ignore[reportArgumentType]

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + b"\0\0"
    tiff = endian.encode() + number(42, 2) + number(8, 4) + number(1, 2) + entry + number(0, 4)
    block = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
