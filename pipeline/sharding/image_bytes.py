"""The bytes of an image as they go into a shard: as they are, or converted and made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from pipeline.indexing.image_check import MAX_IMAGE_PIXELS, check_image
from pipeline.indexing.rejection import Reason, RejectedSampleError
from pipeline.sharding.samples import SkippedError, SkipReason

# Not all that Pillow knows: for EPS it starts another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions:
    """What may be done to images. With the defaults every file stays as it is, byte for byte."""

    convert: bool = False
    """Turn the first frame of what the index does not take (GIF, BMP, TIFF, AVIF) into JPEG."""
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
        SkippedError: it was to be converted and cannot be.
    """
    try:
        width, height = check_image(data, full_decode=False)[:2]
    except RejectedSampleError as error:
        if not (options.convert and error.reason == Reason.UNSUPPORTED_IMAGE):
            raise
        return _encoded(data, options, smaller=None), "jpg"
    suffix = _SUFFIXES[data[:2]]
    size = _smaller(width, height, options)
    if size is None:
        return data, suffix
    suffix = "png" if suffix == "png" else "jpg"
    return _encoded(data, options, smaller=size, suffix=suffix), suffix


def _smaller(width: int, height: int, options: ImageOptions) -> tuple[int, int] | None:
    """Width and height to shrink to; None if the image is small enough."""
    limit = options.max_side or options.short_side
    side = max(width, height) if options.max_side else min(width, height)
    if limit is None or side <= limit:
        return None
    return max(1, round(width * limit / side)), max(1, round(height * limit / side))


def _encoded(
    data: bytes, options: ImageOptions, *, smaller: tuple[int, int] | None, suffix: str = "jpg"
) -> bytes:
    """The picture upright, in RGB and encoded anew, without its metadata but the colour profile."""
    buffer = BytesIO()
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image)
            profile = None if image.mode == "CMYK" else image.info.get("icc_profile")
            picture = _rgb(ImageOps.exif_transpose(image))
        size = smaller or _smaller(*picture.size, options)
        if size is not None:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        if suffix == "png":
            picture.save(buffer, "PNG", icc_profile=profile)
        else:
            picture.save(buffer, "JPEG", quality=options.quality, icc_profile=profile)
    except RejectedSampleError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever comes to hand on damaged files.
        raise SkippedError(SkipReason.CANNOT_CONVERT, str(error) or repr(error)) from None
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
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
