"""A downloaded picture to the JPEG that is stored: decoded once, upright, 8 bits, small enough.

Stands in for img2dataset's Resizer, whose OpenCV dies of a broken animated PNG, stores pictures
with an EXIF orientation sideways, turns 16-bit PNGs white and looks at a picture's size after it
decoded it. What is stored has three channels always, and what is transparent lies on white. Of an
animation the first frame counts, except in a PNG: its first picture is meant for programs that know
no animations ("your browser does not support this"), so an animated PNG is refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from tessera.pipeline.decoding.jpeg_walk import MAX_SCANS, JpegLayoutError, walk_jpeg
from tessera.tools.download.causes import Cause, RefusedError
from tessera.tools.download.job import PictureOptions

Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
_KINDS = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "gif"),
    **dict.fromkeys((b"II*\0", b"MM\0*"), "tiff"),
}
_UNREAD = {
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
    **dict.fromkeys((b"\0\0\0\x0cJXL ", b"\xff\x0a"), "JPEG XL"),
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    **dict.fromkeys((b"II\xbc", b"II+\0", b"MM\0+"), "JPEG XR or BigTIFF"),
}
_TEXTS = {b"<svg": "SVG", b"<!doctype html": "HTML", b"<html": "HTML", b"<": "markup"}
Image.MAX_IMAGE_PIXELS = None  # `_check_size` refuses by the header, under a limit of its own


def image_kind(data: bytes) -> str:
    """The format by the first bytes; a URL's suffix and the server's Content-Type say nothing.

    Returns:
        jpeg, png, gif, webp, bmp, tiff or avif.

    Raises:
        RefusedError: no bytes, no picture, or a picture in a format that is not read.
    """
    if not data:
        raise RefusedError(Cause.EMPTY, "0 bytes")
    for magic, kind in _KINDS.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"BM") and len(data) > 26 and data[6:10] == bytes(4):
        return "bmp"
    if data[4:8] == b"ftyp":
        brands = data[8 : 8 + min(256, int.from_bytes(data[:4], "big"))]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        raise RefusedError(Cause.UNSUPPORTED_IMAGE, "HEIF or video, not AVIF")
    for magic, name in _UNREAD.items():
        if data.startswith(magic):
            raise RefusedError(Cause.UNSUPPORTED_IMAGE, name)
    start = data[:1024].lower()
    found = next((name for text, name in _TEXTS.items() if text in start), "unknown bytes")
    raise RefusedError(Cause.NOT_AN_IMAGE, found)


@dataclass(frozen=True, kw_only=True)
class UprightResizer(PictureOptions):
    """Makes the bytes to store of the bytes of one picture."""

    def __call__(self, stream: BytesIO) -> Resized:
        """Decode, resize and encode one picture; never raises.

        Returns:
            The JPEG, its width and height, the upright width and height before resizing, and None;
            or five times None and `CAUSE: detail`.
        """
        try:
            return self._resize(stream.getvalue())
        except RefusedError as error:
            return None, None, None, None, None, str(error)
        except MemoryError:
            cause, detail = Cause.TOO_MANY_PIXELS, "not enough memory to decode it"
        except Exception as error:  # it would end the row without a line in the parquet
            cause, detail = Cause.UNKNOWN, f"{type(error).__name__} while resizing"
        return None, None, None, None, None, f"{cause}: {detail}"

    def _resize(self, data: bytes) -> Resized:
        image, width, height = self._decode(data)
        if min(width, height) > self.image_size:
            size = self._stored_size(width, height)
            image = image.resize(size, Image.Resampling.BOX)
        image.info = {}  # or a comment would be copied
        jpeg = BytesIO()
        image.save(jpeg, "JPEG", quality=self.encode_quality)
        return jpeg.getvalue(), image.width, image.height, width, height, None

    def _stored_size(self, width: int, height: int) -> tuple[int, int]:
        scale = self.image_size / min(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _decode(self, data: bytes) -> tuple[Image.Image, int, int]:
        """The upright picture, perhaps smaller by a power of two, and its upright size before.

        Raises:
            RefusedError: it is not stored.
        """
        kind = image_kind(data)
        if kind == "jpeg":
            _check_jpeg(data)
        try:
            with warnings.catch_warnings(action="ignore"):
                image = Image.open(BytesIO(data), formats=_FORMATS)
                self._check_size(*image.size)
                if kind == "png" and getattr(image, "is_animated", False):
                    raise RefusedError(Cause.UNSUPPORTED_IMAGE, "an animated PNG")  # noqa: TRY301
                width, height = image.size
                if min(width, height) > self.image_size:
                    stored = self._stored_size(width, height)
                    image.draft(None, (2 * stored[0], 2 * stored[1]))  # JPEG only; others ignore it
                image.load()
                lies = image.width > image.height
                ImageOps.exif_transpose(image, in_place=True)
                turned = (image.width > image.height) != lies
                rgb = _on_white(image)
        except (RefusedError, MemoryError):
            raise
        except Exception:  # Pillow's readers raise whatever a damaged file makes them
            raise RefusedError(Cause.DAMAGED_IMAGE, f"the {kind} cannot be decoded") from None
        return rgb, *((height, width) if turned else (width, height))

    def _check_size(self, width: int, height: int) -> None:
        short, long = sorted((width, height))
        if short * long > self.max_pixels:
            raise RefusedError(Cause.TOO_MANY_PIXELS, "more pixels than the limit")
        if short < self.min_image_size:
            raise RefusedError(Cause.TOO_SMALL, "the short side is too short")
        if long > self.max_aspect_ratio * short:
            raise RefusedError(Cause.ASPECT_RATIO, "too long for its width")


def _check_jpeg(data: bytes) -> None:
    try:
        layout = walk_jpeg(data)
    except JpegLayoutError as error:
        raise RefusedError(Cause.DAMAGED_IMAGE, f"the jpeg's segments: {error}") from None
    if layout.scans > MAX_SCANS:
        raise RefusedError(Cause.UNSUPPORTED_IMAGE, f"a JPEG of more than {MAX_SCANS} scans")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise RefusedError(Cause.UNSUPPORTED_IMAGE, "32-bit or float pixels")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
