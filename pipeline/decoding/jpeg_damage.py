"""Whether all of a JPEG's pixels are there: the warnings of libjpeg-turbo, taken as damage.

libjpeg fills in what is missing and only warns of it, and Pillow does not pass the warning on. The
same library is asked here through simplejpeg, which does, and which needs no compiler.
"""

from __future__ import annotations

import re
from io import BytesIO

import simplejpeg
from PIL import Image

from tessera.pipeline.decoding.jpeg_walk import bare_jpeg

_OF_PIXELS = re.compile(r"Premature|Inconsistent|Corrupt (?!.*extraneous)")
_ODD_SAMPLING = "subsampling level"
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
MAX_LEFT_OVER = 16
"""Bytes behind the last block and before the end marker that a sound picture may have. Cameras pad
there; two spliced halves leave hundreds."""


def jpeg_damage(data: bytes) -> str:
    """What is wrong with the coded pixels of a JPEG.

    All of them are decoded, at an eighth of the size, which costs half as much as Pillow's decoding
    and finds the same.

    Args:
        data: a file that `walk_jpeg` takes.

    Returns:
        One sentence; empty where nothing is wrong.
    """
    reason = _first_complaint(data)
    if reason and not _OF_PIXELS.match(reason):
        # No pixel depends on bytes between the header's segments or on odd numbers in metadata, but
        # libjpeg tells only of the first thing that it sees.
        reason = _first_complaint(bare_jpeg(data))
    return reason


def _first_complaint(data: bytes) -> str:
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except (ValueError, RuntimeError) as error:
        reason = str(error)
        if _ODD_SAMPLING in reason:
            return _complaint_of_pillow(data)
        left_over = _LEFT_OVER.search(reason)
        return "" if left_over and int(left_over[1]) <= MAX_LEFT_OVER else reason
    return ""


def _complaint_of_pillow(data: bytes) -> str:
    """What Pillow says of a file whose sampling simplejpeg does not take.

    Nobody samples colours at 3x1, or finer than brightness; Pillow only sees that such a file ends
    too early.
    """
    try:
        Image.open(BytesIO(data), formats=("JPEG",)).load()
    except Exception as error:
        return str(error) or repr(error)
    return ""
