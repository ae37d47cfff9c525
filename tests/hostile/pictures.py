"""Picture files, through the check of the index, every decoder, the packer and the downloader."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.decoding import open_decoder
from pipeline.indexing.image_check import check_image
from pipeline.indexing.rejection import RejectedSampleError
from pipeline.sharding.image_bytes import ImageOptions, prepare_image
from pipeline.sharding.samples import SkippedError
from tests.decoder_pictures import encode, photo, with_orientation
from tests.hostile.harness import Parser
from tests.hostile.mutate import png_checksums
from tools.download.image_header import ImageError, read_header

_MAX_PIXELS = 10**6
_WINDOWS = np.array([[0, 0, 40, 40], [3, 5, 20, 40]], dtype=np.int32)


class UndecodedError(Exception):
    """A decoder or the downloader gave a reason instead of a picture."""


def usual(_: Path) -> list[bytes]:
    """What an index takes: JPEG in its variants, PNG, WebP."""
    return [
        encode(photo(97, 70, seed=1), subsampling=2),
        encode(photo(80, 61, seed=2), subsampling=0, progressive=True),
        encode(photo(61, 80, seed=3), restart_marker_blocks=3),
        with_orientation(encode(photo(90, 70, seed=4), subsampling=1), 6),
        encode(photo(60, 60, seed=5, mode="L"), optimize=True),
        encode(photo(60, 60, seed=6, mode="CMYK")),
        encode(photo(70, 50, seed=7), "PNG"),
        encode(photo(70, 50, seed=8, mode="P"), "PNG"),
        encode(photo(50, 50, seed=9, mode="RGBA"), "PNG"),
        encode(photo(70, 50, seed=10), "WEBP", quality=80),
        encode(photo(70, 50, seed=11), "WEBP", lossless=True),
    ]


def unusual(folder: Path) -> list[bytes]:
    """What may be converted or downloaded as well."""
    pictures = [photo(70, 50, seed=number) for number in (1, 2)]
    animation = io.BytesIO()
    pictures[0].save(animation, "GIF", save_all=True, append_images=pictures[1:])
    others = [encode(pictures[0], name) for name in ("BMP", "TIFF", "AVIF")]
    return [*usual(folder), animation.getvalue(), *others]


def _check(_: Path) -> Callable[[bytes], object]:
    return lambda data: check_image(data, full_decode=True, dhash=True)


def _decoder(kind: str) -> Callable[[Path], Callable[[bytes], object]]:
    def prepared(_: Path) -> Callable[[bytes], object]:
        decoder = open_decoder(kind, image_size=32, batch_size=2, num_threads=1)  # pyright: ignore[reportArgumentType]

        def decode(data: bytes) -> None:
            decoded = decoder.decode([data, data], _WINDOWS)
            if not all(decoded.failures.values()):
                raise AssertionError("a failure without a reason")
            if len(decoded.failures) == len(_WINDOWS):
                raise UndecodedError

        return decode

    return prepared


def _packed(_: Path) -> Callable[[bytes], object]:
    options = ImageOptions(convert=True, max_side=48)
    return lambda data: prepare_image(data, options)


def _downloaded(_: Path) -> Callable[[bytes], object]:
    # As the download's processes have it; OpenCV reads it when it is loaded.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(_MAX_PIXELS)
    from tools.download.upright import UprightResizer

    resizer = UprightResizer(
        image_size=32,
        encode_quality=90,
        min_image_size=8,
        max_aspect_ratio=10,
        max_pixels=_MAX_PIXELS,
    )

    def store(data: bytes) -> None:
        with suppress(ImageError):
            read_header(data)
        stored, *_, reason = resizer(io.BytesIO(data))
        if stored is None:
            if not reason or reason.startswith("unknown"):
                raise AssertionError(f"not foreseen: {reason}")
            raise UndecodedError(reason)
        with Image.open(io.BytesIO(stored), formats=("JPEG",)) as image:
            image.load()

    return store


def parsers() -> Sequence[Parser]:
    """All of this module."""
    decoders = [
        Parser(
            name=f"pictures: decoder {kind}",
            files=usual,
            open=_decoder(kind),
            refusals=(UndecodedError,),
            divisor=1,
            repair=png_checksums,
        )
        for kind in ("turbo", "pil", "dali")
    ]
    return [
        Parser(
            name="pictures: index check",
            files=usual,
            open=_check,
            refusals=(RejectedSampleError,),
            divisor=1,
            repair=png_checksums,
        ),
        *decoders,
        Parser(
            name="pictures: make_shards",
            files=unusual,
            open=_packed,
            refusals=(RejectedSampleError, SkippedError),
            divisor=2,
            repair=png_checksums,
        ),
        Parser(
            name="pictures: downloader",
            files=unusual,
            open=_downloaded,
            refusals=(UndecodedError,),
            divisor=2,
            repair=png_checksums,
        ),
    ]
