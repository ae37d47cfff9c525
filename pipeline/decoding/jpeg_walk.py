"""Walk over the segments of a JPEG file without decoding it; needs neither torch nor Pillow.

The walk tells where the picture ends, how many scans it has, and whether the file is *plain*: laid
out so simply that every decoder reads it alike. DALI's decoders get plain files only.

A file is a chain of segments, each a marker (FF and a byte), a length of two bytes and a body. The
data of a scan follow its SOS segment; in them FF is followed by 00 or by a restart marker's byte.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from tessera.pipeline.decoding.exif import EXIF_PREFIX, exif_orientation

MAX_SCANS = 100
"""Scans that a JPEG may have. Encoders write about 10, and each one is a visit to every pixel."""
MAX_SCANNED_PIXELS = 2_000_000_000
"""Scans times pixels that a JPEG may have, some seconds of decoding."""
MAX_SIDE = 65500
"""Pixels that libjpeg takes on a side."""
_EOI, _SOS, _DHT, _DQT, _DRI, _DAC = 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xCC
_APP1, _APP14, _COM = 0xE1, 0xEE, 0xFE
_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {_DHT, 0xC8, _DAC})
_SEGMENTS = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), _COM}) - {0xC8}
_METADATA = frozenset({*range(0xE0, 0xF0), _COM})
_PLAIN_IDS = (b"\1\2\3", b"\0\1\2")
_PLAIN_SAMPLING = (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11")
_STRAY = frozenset({0, 0x01, 0xFF, *range(0xD0, 0xD8)})
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SEGMENT = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")


class JpegLayout(NamedTuple):
    """What a JPEG file says of itself."""

    frame: int
    """Frame marker's second byte: C0 baseline, C2 progressive, C3 lossless, C9 arithmetic."""
    precision: int
    """Bits of a sample."""
    components: int
    """Colours: 1 grey, 3 YCbCr or RGB, 4 CMYK or YCCK."""
    width: int
    """Pixels as stored."""
    height: int
    """Pixels as stored."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    scans: int
    """Scans before the end; counting stops above `MAX_SCANS`."""
    has_too_many_scans: bool
    """More than `MAX_SCANS`, or more than `MAX_SCANNED_PIXELS` are visited by all of them."""
    end: int
    """Bytes from the start of the file to behind the picture's end marker; 0 where it has none.
    What comes later (a video, a second picture, maker notes) is no part of the picture."""
    is_plain: bool
    """Every decoder reads these bytes alike; see `plain_jpeg`."""


class JpegLayoutError(ValueError):
    """The chain of segments breaks before the picture begins."""


def plain_jpeg(data: bytes) -> bool:
    """Whether a file is a plain JPEG, which every decoder reads alike.

    Plain is: each segment follows the one before without a byte between; baseline or progressive
    Huffman coding in 8 bits; grey, or YCbCr in 4:4:4, 4:2:2 or 4:2:0; tables that are whole; at
    most one EXIF block, before the frame; not too many scans; and the file ends with the
    picture's end marker.
    """
    try:
        return walk_jpeg(data).is_plain
    except JpegLayoutError:
        return False


def has_plain_header(data: bytes) -> bool:
    """Whether a file that was plain when it was indexed still looks so; does not walk its scans.

    The header is walked as `plain_jpeg` walks it, and the file must end with an end marker.
    """
    try:
        return walk_jpeg(data, header_only=True).is_plain
    except JpegLayoutError:
        return False


def walk_jpeg(data: bytes, *, header_only: bool = False) -> JpegLayout:
    """Walk over a JPEG file as libjpeg does: stray bytes between segments are passed over.

    Args:
        data: the file.
        header_only: stop where the first scan's data begin, and take an end marker at the file's
            end for the picture's.

    Raises:
        JpegLayoutError: it is no JPEG, or its header is cut short or broken.
    """
    walk = _Walk(data)
    walk.header()
    if header_only:
        walk.end = len(data) if data.endswith(b"\xff\xd9") else 0
    while not header_only and walk.end == 0 and walk.scans <= MAX_SCANS and walk.next_scan():
        pass
    frame = walk.frame
    height, width = data[frame + 1] << 8 | data[frame + 2], data[frame + 3] << 8 | data[frame + 4]
    scanned = walk.scans * height * width
    too_many = walk.scans > MAX_SCANS or (walk.scans > 1 and scanned > MAX_SCANNED_PIXELS)
    return JpegLayout(
        frame=data[frame - 3],
        precision=data[frame],
        components=data[frame + 5],
        width=width,
        height=height,
        orientation=walk.orientation,
        scans=walk.scans,
        has_too_many_scans=too_many,
        end=walk.end,
        is_plain=walk.plain and walk.end == len(data) and not too_many,
    )


def bare_jpeg(data: bytes) -> bytes:
    """The file with nothing before its first scan but what the pixels are decoded with.

    Bytes between segments, metadata and colour spaces are left out; so are a sequential scan's
    progressive parameters, which have no meaning there and are sometimes wrong.

    Raises:
        JpegLayoutError: it is no JPEG, or its header is cut short or broken.
    """
    walk = _Walk(data)
    walk.header()
    parts = [data[:2], *(data[start:end] for start, end in walk.coding)]
    if data[walk.frame - 3] != _PROGRESSIVE:
        parts[-1] = parts[-1][:-3] + b"\x00\x3f\x00"
    return b"".join([*parts, data[walk.at :]])


class _Walk:
    """A place in the file and what was seen before it."""

    __slots__ = (
        "at", "coding", "data", "end", "frame", "has_exif", "has_restarts", "orientation", "plain",
        "scans", "tables",
    )  # fmt: skip

    def __init__(self, data: bytes) -> None:
        if data[:2] != b"\xff\xd8":
            raise JpegLayoutError("it does not begin with FF D8")
        self.data = data
        self.at = 2
        self.frame = 0
        """Place of the frame header's body."""
        self.orientation = 1
        self.has_exif = False
        self.has_restarts = False
        self.scans = 0
        self.end = 0
        self.plain = True
        self.coding: list[tuple[int, int]] = []
        """Start and end of each segment of the header that the pixels are decoded with."""
        self.tables: set[int] = set()
        """Tables that were defined: 0 to 3 quantisers, 0x100 + class and number Huffman."""

    def header(self) -> None:
        """Go to the data of the first scan."""
        while True:
            marker, body, length = self._segment()
            if marker not in _METADATA:
                self.coding.append((body - 4, self.at))
            if marker == _SOS:
                if not self.frame:
                    raise JpegLayoutError("a scan comes before the frame header")
                self.scans = 1
                self.plain = self.plain and self._is_plain_first_scan(body, length)
                return
            if marker not in _SEGMENTS:
                is_end = marker in (0, _EOI)
                what = "the picture ends" if is_end else f"the marker FF{marker:02X} comes"
                raise JpegLayoutError(f"{what} before the first scan")
            if marker in _FRAMES:
                if self.frame or length < 6:
                    raise JpegLayoutError("the frame header is too short, or comes twice")
                self.frame = body
                self.plain = self.plain and self._is_plain_frame(body, length)
            elif marker == _APP1 and self.data.startswith(EXIF_PREFIX, body, body + length):
                if self.has_exif or self.frame:
                    self.plain = False
                if not self.has_exif:
                    self.orientation = exif_orientation(self.data[body : body + length])
                self.has_exif = True
            elif self.plain:
                self.plain = self._is_plain_segment(marker, body, length)

    def next_scan(self) -> bool:
        """Go over a scan's data and to the next scan's; False where there is no other."""
        found = (_SEGMENT if self.has_restarts else _MARKER).search(self.data, self.at)
        if found is None:
            return False
        self.at = found.start()
        while True:
            marker, body, length = self._segment()
            if marker == _SOS:
                self.scans += 1
                return True
            if marker == _EOI:
                self.end = self.at
            if marker not in _SEGMENTS:
                return False
            self.plain = self.plain and self._is_plain_segment(marker, body, length)

    def _segment(self) -> tuple[int, int, int]:
        """Marker, place of the body and its length; marker 0 where the file ends before its end."""
        data, at = self.data, self.at
        marker = data[at + 1] if data[at : at + 1] == b"\xff" and at + 1 < len(data) else 0
        if marker in _STRAY:
            self.plain = False
            found = _SEGMENT.search(data, at)
            if found is None:
                return 0, at, 0
            at = found.start()
            marker = data[at + 1]
        if marker not in _SEGMENTS:
            self.at = at + 2
            return marker, self.at, 0
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        self.at = at + 2 + length
        if length < 2 or self.at > len(data):
            return 0, at, 0
        return marker, at + 4, length - 2

    def _is_plain_segment(self, marker: int, body: int, length: int) -> bool:
        data = self.data
        if marker == _APP14 and data.startswith(b"Adobe", body, body + length):
            return length >= 12 and data[body + 11] == 1
        if marker in _METADATA:
            return True
        if marker == _DRI:
            self.has_restarts = True
            return length == 2
        tables = _plain_tables(marker, data[body : body + length])
        self.tables |= tables
        return bool(tables)

    def _is_plain_frame(self, at: int, length: int) -> bool:
        data = self.data
        count = data[at + 5]
        if (
            data[at - 3] not in (_BASELINE, _PROGRESSIVE)
            or data[at] != 8
            or length != 6 + 3 * count
        ):
            return False
        height, width = data[at + 1] << 8 | data[at + 2], data[at + 3] << 8 | data[at + 4]
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            return False
        end = at + length
        if count == 1:
            return data[at + 7] == 0x11
        return data[at + 6 : end : 3] in _PLAIN_IDS and data[at + 7 : end : 3] in _PLAIN_SAMPLING

    def _is_plain_first_scan(self, at: int, length: int) -> bool:
        """All components at once, and with tables that are there; progressive: the DC first."""
        data, frame = self.data, self.frame
        count = data[frame + 5]
        if length != 4 + 2 * count or data[at] != count:
            return False
        if data[at + 1 : at + 1 + 2 * count : 2] != data[frame + 6 : frame + 6 + 3 * count : 3]:
            return False
        if not self.tables.issuperset(data[frame + 8 : frame + 6 + 3 * count : 3]):
            return False
        is_progressive = data[frame - 3] == _PROGRESSIVE
        for number in data[at + 2 : at + 2 + 2 * count : 2]:
            if 0x100 + (number >> 4) not in self.tables:
                return False
            if not is_progressive and 0x110 + (number & 15) not in self.tables:
                return False
        first, last, bits = data[at + 1 + 2 * count : at + 4 + 2 * count]
        return first == 0 and (last == 0 if is_progressive else (last, bits) == (63, 0))


@lru_cache(maxsize=256)
def _plain_tables(marker: int, body: bytes) -> frozenset[int]:
    """Tables that a segment defines, as `_Walk.tables` holds them; none where it is not whole.

    Most files of a data set have the same tables, so the answers are kept.
    """
    if marker == _DQT:
        numbers = frozenset(body[::65])
        return numbers if len(body) % 65 == 0 and max(numbers, default=4) <= 3 else frozenset()
    found: set[int] = set()
    at = 0
    while marker == _DHT and at + 17 <= len(body):
        symbols = sum(body[at + 1 : at + 17])
        if body[at] & 0xEC or symbols > 256:
            return frozenset()
        found.add(0x100 + body[at])
        at += 17 + symbols
    return frozenset(found) if at == len(body) else frozenset()
