"""Crop windows, drawn from the index's width and height before anything is decoded.

Legend: B samples. A window is (y, x, height, width) in pixels of the upright picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TRIES = 10
DRAWS_PER_WINDOW = 2 * _TRIES + 2
"""Uniform numbers that one window takes."""


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Random resized crop, as torchvision defines it."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the picture's area; 0.9 to 1.0 is open_clip's default."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the window before it is resized to a square."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            low, high = self.scale
            raise ValueError(f"crop scale needs 0 < low <= high <= 1, got {low} and {high}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            low, high = self.ratio
            raise ValueError(f"crop ratio needs 0 < low <= high, got {low} and {high}")


def draw_windows(
    width: NDArray[np.int32],
    height: NDArray[np.int32],
    uniforms: NDArray[np.float64],
    crop: CropConfig,
) -> NDArray[np.int32]:
    """Draw one window for each sample: area and log aspect uniform, place uniform.

    The first of ten draws that fits in the picture is taken; where none does, the largest centred
    window of the nearest allowed aspect (torchvision.transforms.RandomResizedCrop).

    Args:
        width: [B] pixels.
        height: [B] pixels.
        uniforms: [B, DRAWS_PER_WINDOW] in [0, 1).
        crop: ranges.

    Returns:
        [B, 4] int32 windows.
    """
    shares, aspects = uniforms[:, :_TRIES], uniforms[:, _TRIES : 2 * _TRIES]
    area = (width.astype(np.float64) * height)[:, None]
    area = area * (crop.scale[0] + shares * (crop.scale[1] - crop.scale[0]))
    low, high = np.log(crop.ratio)
    aspect = np.exp(low + aspects * (high - low))
    tried_w, tried_h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (tried_w >= 1) & (tried_h >= 1)
    fits &= (tried_w <= width[:, None]) & (tried_h <= height[:, None])
    first, rows = fits.argmax(axis=1), np.arange(len(width))
    fallback_w, fallback_h = _largest_allowed(width, height, crop.ratio)
    some = fits.any(axis=1)
    window_w = np.where(some, tried_w[rows, first], fallback_w)
    window_h = np.where(some, tried_h[rows, first], fallback_h)
    y = np.where(some, np.floor(uniforms[:, -2] * (height - window_h + 1)), (height - window_h) / 2)
    x = np.where(some, np.floor(uniforms[:, -1] * (width - window_w + 1)), (width - window_w) / 2)
    return np.stack([y, x, window_h, window_w], axis=1).astype(np.int32)


def centre_windows(width: NDArray[np.int32], height: NDArray[np.int32]) -> NDArray[np.int32]:
    """The largest centred square: what resizing the short side and cropping the centre leaves.

    Returns:
        [B, 4] int32 windows.
    """
    side = np.minimum(width, height)
    return np.stack([(height - side) // 2, (width - side) // 2, side, side], axis=1).astype(
        np.int32
    )


def _largest_allowed(
    width: NDArray[np.int32], height: NDArray[np.int32], ratio: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    narrow = width < ratio[0] * height
    wide = width > ratio[1] * height
    window_w = np.where(wide, np.rint(height * ratio[1]), width)
    window_h = np.where(narrow, np.rint(width / ratio[0]), height)
    return np.maximum(window_w, 1.0), np.maximum(window_h, 1.0)
