"""Picture files, through the check of the index, every decoder, the packer and the downloader."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from tessera.pipeline.decoding import open_decoder
from tessera.pipeline.index.image_check import check_image
from tessera.pipeline.index.rejection import Reason, RejectedSampleError
from tessera.tools.sharding import ImageOptions, SkippedError, prepare_image
from tests.decoder_pictures import encode, photo, with_orientation
from tests.every_picture import SOUND
from tests.hostile.harness import Parser
from tests.hostile.mutate import png_checksums

_MAX_PIXELS = 10**6
_MOST_DIFFERENCE = 6.0
"""Levels by which turbo and pil may differ: turbo lets libjpeg make large pictures smaller."""
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


def every_kind(_: Path) -> list[bytes]:
    """What an index takes, with every oddity that was ever read in two ways."""
    return list(SOUND.values())


def unusual(folder: Path) -> list[bytes]:
    """What may be converted or downloaded as well."""
    pictures = [photo(70, 50, seed=number) for number in (1, 2)]
    animation = io.BytesIO()
    pictures[0].save(animation, "GIF", save_all=True, append_images=pictures[1:])
    others = [encode(pictures[0], name) for name in ("BMP", "TIFF", "AVIF")]
    return [*usual(folder), animation.getvalue(), *others]


def _check(_: Path) -> Callable[[bytes], object]:
    return lambda data: check_image(data, full_decode=True, dhash=True)


def _one_verdict(_: Path) -> Callable[[bytes], object]:
    """What the index takes whole, every CPU decoder serves, and with the same pixels; what it does
    not take, `pil` refuses too."""
    turbo, pil = (
        open_decoder(kind, image_size=32, batch_size=1, num_threads=1) for kind in ("turbo", "pil")
    )

    def judge(data: bytes) -> None:
        try:
            facts = check_image(data, full_decode=True, max_pixels=_MAX_PIXELS)
        except RejectedSampleError as error:
            if error.reason != Reason.TOO_LARGE and not pil.decode([data], _WINDOWS[1:]).failures:
                raise AssertionError(f"pil serves what the index refuses: {error}") from None
            raise
        window = np.array([[0, 0, facts.height, facts.width]], dtype=np.int32)
        found = [decoder.decode([data], window) for decoder in (turbo, pil)]
        if any(decoded.failures for decoded in found):
            if _is_sampled_oddly(data):
                return  # the index does not see all damage of such files; docs/pipeline.md
            raise AssertionError(f"{[decoded.failures for decoded in found]} of a sound picture")
        if not _quantisers(data) <= _SOUND_QUANTISERS:
            return  # with absurd ones the values overflow, and no decoder is right
        first, second = (decoded.images.numpy().astype(np.int16) for decoded in found)
        if (error := float(np.abs(first - second).mean())) > _MOST_DIFFERENCE:
            raise AssertionError(f"turbo and pil differ by {error:.1f} levels")

    return judge


def _is_sampled_oddly(data: bytes) -> bool:
    """Whether simplejpeg cannot read it because of how its colours are sampled."""
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        return "subsampling" in str(error)
    return False


def _quantisers(data: bytes) -> set[bytes]:
    """Quantiser tables of a JPEG, and what looks like one."""
    return {data[at.start() : at.start() + 69] for at in re.finditer(rb"\xff\xdb\0", data)}


_SOUND_QUANTISERS = set().union(*map(_quantisers, SOUND.values()))


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
    from tessera.tools.download.upright import UprightResizer

    resizer = UprightResizer(
        image_size=32,
        encode_quality=90,
        min_image_size=8,
        max_aspect_ratio=10,
        max_pixels=_MAX_PIXELS,
    )

    def store(data: bytes) -> None:
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
            files=every_kind,
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
            files=every_kind,
            open=_check,
            refusals=(RejectedSampleError,),
            divisor=1,
            repair=png_checksums,
        ),
        Parser(
            name="pictures: one verdict of index, turbo and pil",
            files=every_kind,
            open=_one_verdict,
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
