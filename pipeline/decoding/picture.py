"""What a picture is: one reading for the index, every decoder and make_shards; needs no torch.

- The format follows from the content, never from the name: JPEG, PNG or WebP.
- The orientation is the EXIF block's, wherever in the file that stands.
- What is transparent lies on white.
- Of an animation the first picture counts: a WebP's first frame, a PNG's default image.
- A JPEG of which pixels are missing is damaged, also where libjpeg would fill them in.
"""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from tessera.pipeline.decoding.exif import exif_orientation
from tessera.pipeline.decoding.jpeg_damage import jpeg_damage
from tessera.pipeline.decoding.jpeg_walk import JpegLayout, JpegLayoutError, walk_jpeg
from tessera.pipeline.decoding.other_formats import name_other_format, name_other_jpeg

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
"""Names by Pillow of the formats that are read."""
_PNG_DEPTH_PLACE = 24
_WEBP_HAS_EXIF = 0x08
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a stored picture upright, by EXIF orientation."""


class Fault(StrEnum):
    """Why a file is no picture to use; the index rejects samples by these words."""

    EMPTY = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported_image"
    TRUNCATED = "truncated_image"
    DAMAGED = "damaged_image"
    TOO_LARGE = "too_large"


class PictureError(ValueError):
    """A file that cannot be used as a picture."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault
        """What kind of fault it is."""
        self.detail = detail
        """One sentence for a person."""


class Picture:
    """A file whose header was read and found good; `pixels` decodes it.

    Raises:
        PictureError: the header is not of a picture that can be used.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.kind = _kind_of(data)
        """JPEG, PNG or WEBP."""
        layout = _jpeg_layout(data) if self.kind == "JPEG" else None
        self.is_plain = layout is not None and layout.is_plain
        """Whether it is a plain JPEG; see `pipeline.decoding.jpeg_walk`."""
        self.orientation = layout.orientation if layout else _orientation(data, self.kind)
        """EXIF orientation, 1 to 8."""
        self._image = _opened(data)
        if self._image.mode.startswith(("I", "F")):
            detail = f"pixels of mode {self._image.mode}, more than 8 bits a channel"
            raise PictureError(Fault.UNSUPPORTED, detail)
        width, height = self._image.size
        self.width, self.height = (height, width) if self.orientation >= 5 else (width, height)
        """Pixels of the upright picture."""

    @property
    def colour_profile(self) -> bytes | None:
        """The ICC profile that belongs to `pixels`."""
        return None if self._image.mode == "CMYK" else self._image.info.get("icc_profile")

    def check_pixels(self) -> None:
        """See that all pixels are there.

        Raises:
            PictureError: they are not.
        """
        if self.kind != "JPEG":
            _load(self._image)
        elif reason := jpeg_damage(self._data):
            cut = "premature end" in reason.lower()
            raise PictureError(Fault.TRUNCATED if cut else Fault.DAMAGED, reason)

    def stored_pixels(self) -> Image.Image:
        """The picture as it is stored, in a mode without transparency; not held to be whole.

        Raises:
            PictureError: it cannot be decoded.
        """
        image = _load(self._image)
        return on_white(image) if image.has_transparency_data else image

    def pixels(self) -> Image.Image:
        """The picture: upright, RGB, on white.

        Raises:
            PictureError: pixels are missing, or cannot be decoded.
        """
        self.check_pixels()
        image = on_white(_load(self._image))
        turn = _UPRIGHT.get(self.orientation)
        return image if turn is None else image.transpose(turn)


def on_white(image: Image.Image) -> Image.Image:
    """The picture in RGB; what is transparent shows white."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _kind_of(data: bytes) -> str:
    if not data:
        raise PictureError(Fault.EMPTY, "0 bytes")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        if data[_PNG_DEPTH_PLACE : _PNG_DEPTH_PLACE + 1] == b"\x10":
            detail = "16 bits a channel; store it with 8, or let make_shards --convert do so"
            raise PictureError(Fault.UNSUPPORTED, detail)
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if found := name_other_format(data):
        detail = f"it is {found}; only JPEG, PNG and WebP are read"
        raise PictureError(Fault.UNSUPPORTED, detail)
    raise PictureError(Fault.NOT_AN_IMAGE, f"it begins with {data[:16]!r}")


def _jpeg_layout(data: bytes) -> JpegLayout:
    try:
        layout = walk_jpeg(data)
    except JpegLayoutError as error:
        raise PictureError(Fault.TRUNCATED, f"no complete header: {error}") from None
    if layout.has_too_many_scans:
        detail = f"{layout.scans} or more scans of {layout.width}x{layout.height} pixels"
        raise PictureError(Fault.TOO_LARGE, f"{detail} take too long to decode")
    if found := name_other_jpeg(layout):
        detail = f"it is a JPEG with {found}; only those with Huffman codes and 8 bits are read"
        raise PictureError(Fault.UNSUPPORTED, detail)
    if not layout.end:
        raise PictureError(Fault.TRUNCATED, "the JPEG has no end marker")
    return layout


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=PICTURE_FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(Fault.TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        raise PictureError(Fault.TRUNCATED, "no complete header") from None
    except Exception as error:
        # Pillow raises many kinds (OSError, SyntaxError, ValueError, struct.error, ...).
        raise PictureError(Fault.TRUNCATED, f"no complete header: {error!r}") from None


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        text = str(error)
        cut = "truncated" in text.lower() or "unexpected end" in text.lower()
        raise PictureError(Fault.TRUNCATED if cut else Fault.DAMAGED, text or repr(error)) from None
    return image


def _orientation(data: bytes, kind: str) -> int:
    return exif_orientation(_png_exif(data) if kind == "PNG" else _webp_exif(data))


def _png_exif(data: bytes) -> bytes:
    """The eXIf chunk, which may also stand behind the pixels; empty where there is no whole one."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if data.startswith(b"eXIf", at + 4):
            chunk, checksum = data[at + 4 : end], data[end : end + 4]
            return chunk[4:] if checksum == struct.pack(">I", zlib.crc32(chunk)) else b""
        at = end + 4
    return b""


def _webp_exif(data: bytes) -> bytes:
    """The EXIF chunk, which must be announced in the file's header; empty where there is none."""
    if not data.startswith(b"VP8X", 12) or len(data) < 30 or not data[20] & _WEBP_HAS_EXIF:
        return b""
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if data.startswith(b"EXIF", at):
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return b""
