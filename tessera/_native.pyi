"""Types of the C extension; native/README.md describes it.

Legend: B files or images, S side of an image in pixels, N patches of an image, D values of a patch,
A anchors of an image.
"""

from collections.abc import Buffer

def open_libjpeg(path: str) -> None:
    """Load the libjpeg-turbo to decode with; raises OSError. To be called before `decode`."""

def decode(
    files: tuple[bytes, ...], windows: Buffer, images: Buffer, side: int, threads: int
) -> list[tuple[int, bool, str]]:
    """Decode windows [B, 4] int32 into images [B, S, S, 3] uint8, without the GIL.

    Returns (place, damaged, reason) of each file that was not decoded, whose image is black; one
    that is not damaged is of a kind that another decoder may read.
    """

def similarity(
    patches: Buffer,
    anchors: Buffer,
    found: Buffer,
    shape: tuple[int, int, int, int],
    scale: tuple[float, float, float],
    shift: tuple[float, float, float],
    threads: int,
) -> None:
    """Fill `found` [B, N] float32 from patches [B, N, D] uint8 and anchors [B, A] int64.

    `shape` is (B, N, D, A); a value v of channel c counts as scale[c] * v + shift[c].
    """
