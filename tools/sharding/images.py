"""The bytes of an image as they go into a shard: as they are, or converted and made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tessera.pipeline.decoding.picture import PICTURE_FORMATS, Picture, PictureError, on_white
from tessera.pipeline.index.image_check import MAX_IMAGE_PIXELS, check_image
from tessera.pipeline.index.rejection import Reason, RejectedSampleError
from tessera.tools.sharding.samples import SkippedError, SkipReason

# Not all that Pillow knows: for EPS it starts another program.
_FORMATS = (*PICTURE_FORMATS, "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO")
_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions:
    """What may be done to images. With the defaults every file stays as it is, byte for byte."""

    convert: bool = False
    """Turn what the index does not take into JPEG, where Pillow reads it: the first frame of GIF,
    BMP, TIFF, AVIF, JPEG 2000 and icons, PNG with 16 bits, JPEG with arithmetic coding."""
    max_side: int | None = None
    """Pixels that the longer side has at most; larger images are made smaller."""
    short_side: int | None = None
    """Pixels that the shorter side has at most; larger images are made smaller."""
    quality: int = 95
    """JPEG quality (1 to 100) of images that are converted or made smaller."""

    def __post_init__(self) -> None:
        if self.max_side is not None and self.short_side is not None:
            raise ValueError("give --max-side or --short-side, not both")
        for name, side in (("--max-side", self.max_side), ("--short-side", self.short_side)):
            if side is not None and side < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must lie between 1 and 100, got {self.quality}")


def prepare_image(data: bytes, options: ImageOptions) -> tuple[bytes, str]:
    """Check an image file and change it where that was asked for.

    Args:
        data: the file.
        options: what may be changed.

    Returns:
        The file for the shard and its suffix: jpg, png or webp.

    Raises:
        RejectedSampleError: the index would not take the image.
        SkippedError: it was to be converted and is damaged.
    """
    try:
        width, height = check_image(data, full_decode=False)[:2]
    except RejectedSampleError as error:
        if not (options.convert and error.reason == Reason.UNSUPPORTED_IMAGE):
            raise
        return _converted(data, options, error), "jpg"
    suffix = _SUFFIXES[data[:2]]
    size = _smaller(width, height, options)
    if size is None:
        return data, suffix
    suffix = "png" if suffix == "png" else "jpg"
    try:
        picture = Picture(data)
        smaller = picture.pixels().resize(size, Image.Resampling.LANCZOS)
    except PictureError as error:
        raise RejectedSampleError(Reason(error.fault), error.detail) from None
    return _encoded(smaller, picture.colour_profile, options, suffix), suffix


def _smaller(width: int, height: int, options: ImageOptions) -> tuple[int, int] | None:
    """Width and height to shrink to; None if the image is small enough."""
    limit = options.max_side or options.short_side
    side = max(width, height) if options.max_side else min(width, height)
    if limit is None or side <= limit:
        return None
    return max(1, round(width * limit / side)), max(1, round(height * limit / side))


def _converted(data: bytes, options: ImageOptions, refused: RejectedSampleError) -> bytes:
    """The first frame upright and in RGB, as a JPEG without metadata but the colour profile."""
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image)
            profile = None if image.mode == "CMYK" else image.info.get("icc_profile")
            picture = _rgb(ImageOps.exif_transpose(image))
        size = _smaller(*picture.size, options)
        if size is not None:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        return _encoded(picture, profile, options, "jpg")
    except RejectedSampleError:
        raise
    except UnidentifiedImageError:
        detail = f"{refused.detail}; --convert cannot read it either"
        raise RejectedSampleError(refused.reason, detail) from None
    except Exception as error:
        # Pillow's decoders raise whatever comes to hand on damaged files.
        detail = f"{refused.detail}; --convert cannot read it either: {error!r}"
        raise SkippedError(SkipReason.CANNOT_CONVERT, detail) from None


def _encoded(
    picture: Image.Image, profile: bytes | None, options: ImageOptions, suffix: str
) -> bytes:
    buffer = BytesIO()
    if suffix == "png":
        picture.save(buffer, "PNG", icc_profile=profile)
    else:
        picture.save(buffer, "JPEG", quality=options.quality, icc_profile=profile)
    return buffer.getvalue()


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        detail = f"{image.width}x{image.height} pixels exceed the limit of {MAX_IMAGE_PIXELS}"
        raise RejectedSampleError(Reason.TOO_LARGE, detail)


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; what is transparent lies on white."""
    if image.mode.startswith("I;16"):
        # Pillow would cut values off at 255 instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of the kind {image.mode} have no known range")
    return on_white(image)
