"""What the first bytes of a picture say: its format, its pixels, and which way up it is.

Read before anything is decoded, so that a file of a few kilobytes cannot claim gigabytes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from tools.download.causes import Cause

_EXIF_SHORT = 3
_ORIENTATION_TAG = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_TIFF_TYPES = {1: "B", _EXIF_SHORT: "H", 4: "I"}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_ISO_TURN, _ISO_MIRROR = b"irot", b"imir"
_AVIF_BRANDS = (b"avif", b"avis")
_READ = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
_TEXTS = {
    b"<!doctype html": "HTML",
    b"<html": "HTML",
    b"<head": "HTML",
    b"<body": "HTML",
    b"<script": "HTML",
    b"<?xml": "XML",
    b"<": "markup",
    b"%pdf": "PDF",
    b"{": "JSON",
    b"[": "JSON",
}
_UNREAD = {
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc": "JPEG XR",
    b"v/1\x01": "OpenEXR",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
}


class ImageError(Exception):
    """A picture that cannot be stored."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(f"{cause.value}: {detail}")
        self.cause = cause
        """Which of the closed list of causes it is."""
        self.detail = detail
        """A few words, the same for every picture of this kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What was read without decoding."""

    kind: str
    """jpeg, png, gif, webp, bmp, tiff or avif."""
    width: int
    """Pixels as stored."""
    height: int
    """Pixels as stored."""
    orientation: int = 1
    """EXIF orientation, 1 to 8, where the decoder leaves it to the caller; otherwise 1."""


def image_kind(data: bytes) -> str:
    """The format by the first bytes; a URL's suffix and the server's Content-Type say nothing.

    Raises:
        ImageError: no bytes, no picture, or a picture in a format that is not read.
    """
    if not data:
        raise ImageError(Cause.EMPTY, "0 bytes")
    for magic, kind in _READ.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"BM") and len(data) > 26 and data[6:10] == bytes(4):
        return "bmp"
    if data[4:8] == b"ftyp":
        brands = data[8 : 8 + min(256, int.from_bytes(data[:4], "big"))]
        if any(brand in brands for brand in _AVIF_BRANDS):
            return "avif"
        raise ImageError(Cause.UNSUPPORTED_IMAGE, "HEIF or video, not AVIF")
    for magic, name in _UNREAD.items():
        if data.startswith(magic):
            raise ImageError(Cause.UNSUPPORTED_IMAGE, name)
    raise ImageError(Cause.NOT_AN_IMAGE, _what_else(data))


def _what_else(data: bytes) -> str:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in start:
        return "SVG"
    for beginning, name in _TEXTS.items():
        if start.startswith(beginning):
            return name
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return "text" if printable >= 0.9 * len(start) else "unknown bytes"


def read_header(data: bytes) -> Header:
    """Format, size and orientation of a picture.

    Raises:
        ImageError: not a picture that is read, or a header that is cut short.
    """
    kind = image_kind(data)
    try:
        header = _READERS[kind](data)
    except (struct.error, IndexError):
        header = None
    if header is None or header.width < 1 or header.height < 1:
        raise ImageError(Cause.DAMAGED_IMAGE, f"no complete {kind} header")
    return header


def _jpeg(data: bytes) -> Header | None:
    place = 2
    while True:
        while data[place] != 0xFF:
            place += 1
        while data[place] == 0xFF:
            place += 1
        marker = data[place]
        place += 1
        if marker in _JPEG_ALONE:
            continue
        if marker in (0xD9, 0xDA):
            return None
        (length,) = struct.unpack_from(">H", data, place)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 3)
            return Header(kind="jpeg", width=width, height=height)
        place += max(2, length)


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    orientation, place = 1, 8
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"eXIf":
            orientation = exif_orientation(data[place + 8 : place + 8 + length])
        place += 12 + length
        if place > len(data):  # the codec would make room for the whole of it before it reads
            raise ImageError(Cause.DAMAGED_IMAGE, "a chunk of the png is longer than the file")
        if name == b"IEND":
            break
    return Header(kind="png", width=width, height=height, orientation=orientation)


def _gif(data: bytes) -> Header:
    width, height = struct.unpack_from("<HH", data, 6)
    return Header(kind="gif", width=width, height=height)


def _webp(data: bytes) -> Header | None:
    orientation, place = 1, 12
    size: tuple[int, int] | None = None
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        body = place + 8
        if name == b"EXIF":
            orientation = exif_orientation(data[body : body + length])
        elif size is None:
            size = _webp_size(name, data, body)
        place = body + length + length % 2
    if size is None:
        return None
    return Header(kind="webp", width=size[0], height=size[1], orientation=orientation)


def _webp_size(name: bytes, data: bytes, body: int) -> tuple[int, int] | None:
    if name == b"VP8X":
        width = int.from_bytes(data[body + 4 : body + 7], "little") + 1
        return width, int.from_bytes(data[body + 7 : body + 10], "little") + 1
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, body + 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, body + 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _bmp(data: bytes) -> Header:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return Header(kind="bmp", width=abs(width), height=abs(height))


def _tiff(data: bytes) -> Header | None:
    entries = _tiff_entries(data)
    if _TIFF_WIDTH not in entries or _TIFF_HEIGHT not in entries:
        return None
    # The decoder turns a TIFF by itself, so no orientation is left to do.
    return Header(kind="tiff", width=entries[_TIFF_WIDTH][1], height=entries[_TIFF_HEIGHT][1])


def _avif(data: bytes) -> Header | None:
    sizes = [
        struct.unpack_from(">II", data, found.start() + 8)
        for found in re.finditer(b"ispe", data[: 1 << 16])
    ]
    if not sizes:
        return None
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header(kind="avif", width=width, height=height, orientation=_avif_orientation(data))


def _avif_orientation(data: bytes) -> int:
    """The EXIF orientation that `irot` (quarter turns to the left) and `imir` amount to."""
    meta = data[: 1 << 16]
    turn, mirror = meta.find(_ISO_TURN), meta.find(_ISO_MIRROR)
    turns = data[turn + 4] & 3 if turn >= 0 else 0
    if mirror < 0:
        return (1, 8, 3, 6)[turns]
    # The turn comes first, then the mirror: axis 0 exchanges top and bottom, 1 left and right.
    return ((4, 5, 2, 7), (2, 7, 4, 5))[data[mirror + 4] & 1][turns]


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) that an EXIF block asks for; 1 where it says nothing valid."""
    try:
        kind, value = _tiff_entries(exif.removeprefix(b"Exif\0\0")).get(_ORIENTATION_TAG, (0, 1))
    except struct.error:
        return 1
    return value if kind == _EXIF_SHORT and 1 <= value <= 8 else 1


def _tiff_entries(tiff: bytes) -> dict[int, tuple[int, int]]:
    """Type and value of the single integers in the first directory of a TIFF structure, by tag."""
    endian = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if endian is None:
        return {}
    (start,) = struct.unpack_from(f"{endian}I", tiff, 4)
    (count,) = struct.unpack_from(f"{endian}H", tiff, start)
    entries: dict[int, tuple[int, int]] = {}
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{endian}HHI", tiff, place)
        if length == 1 and kind in _TIFF_TYPES:
            (value,) = struct.unpack_from(endian + _TIFF_TYPES[kind], tiff, place + 8)
            entries[tag] = (kind, value)
    return entries


_READERS = {
    "jpeg": _jpeg,
    "png": _png,
    "gif": _gif,
    "webp": _webp,
    "bmp": _bmp,
    "tiff": _tiff,
    "avif": _avif,
}
