"""What turns a stored picture upright, for decoders that know nothing of EXIF orientations.

A window of the upright picture is a window of the stored one. The picture that was decoded from it
is square, and stays so when it is turned.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_UPSIDE_DOWN = (3, 4, 6, 7)
_MIRRORED = (2, 3, 7, 8)
_LAST_UNTRANSPOSED = 4


def stored_window(window: NDArray[np.int32], orientation: int, size: tuple[int, int]) -> list[int]:
    """The part of the stored picture that a window of the upright one shows.

    Args:
        window: [4] (y, x, height, width) in the upright picture.
        orientation: EXIF orientation, 1 to 8.
        size: (height, width) of the picture as stored.

    Returns:
        (y, x, height, width) in the stored picture.
    """
    y, x, height, width = (int(value) for value in window)
    if orientation > _LAST_UNTRANSPOSED:
        y, x, height, width = x, y, width, height
    if orientation in _UPSIDE_DOWN:
        y = size[0] - y - height
    if orientation in _MIRRORED:
        x = size[1] - x - width
    return [y, x, height, width]


def turn_upright(images: torch.Tensor, orientation: int) -> torch.Tensor:
    """Square images as stored, turned upright.

    Args:
        images: [B, S, S, 3].
        orientation: EXIF orientation of all of them, 1 to 8.

    Returns:
        [B, S, S, 3], perhaps a view.
    """
    axes = [1] * (orientation in _UPSIDE_DOWN) + [2] * (orientation in _MIRRORED)
    turned = images.flip(axes) if axes else images
    return turned.transpose(1, 2) if orientation > _LAST_UNTRANSPOSED else turned
