"""The orientation that an EXIF block asks for."""

from __future__ import annotations

import struct

EXIF_PREFIX = b"Exif\0\0"
"""What an EXIF block begins with inside of a JPEG, and sometimes in other files."""
_ORIENTATION_TAG = 0x0112
_SHORT = 3


def exif_orientation(exif: bytes) -> int:
    """Orientation (1 to 8) that an EXIF block asks for; 1 where it says nothing valid.

    Deliberately strict, as nvImageCodec is: the tag must be one SHORT in the first directory, and
    XMP is not asked. Pillow accepts more, and width and height would then be swapped for pictures
    that the decoder does not turn.
    """
    tiff = exif.removeprefix(EXIF_PREFIX)
    endian = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if endian is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{endian}I", tiff, 4)
        (count,) = struct.unpack_from(f"{endian}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length, value = struct.unpack_from(f"{endian}HHIH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and length == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
