"""Images to patches and back, and the pixel normalisation that CLIP is trained with.

Legend: B images, H and W image size in pixels, p patch side, R = H/p rows, C = W/p columns,
N = R*C patches, D = 3*p*p values of a patch in (y, x, channel) order.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means of pixels scaled to 0..1, red, green, blue (Radford et al., 2021)."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations of pixels scaled to 0..1."""


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, row-major.

    Args:
        images: [B, H, W, 3] of any dtype.
        patch_size: p, in pixels; divides H and W.

    Returns:
        [B, N, D], same dtype.

    Raises:
        ValueError: the image size is no multiple of the patch size.
    """
    batch, height, width, channels = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"{height}x{width} pixels do not divide into {patch_size}-pixel patches")
    rows, columns = height // patch_size, width // patch_size
    tiles = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return tiles.transpose(2, 3).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Undo `patchify`.

    Args:
        patches: [B, N, D].
        grid: (R, C) with R*C = N.

    Returns:
        [B, H, W, 3], same dtype.
    """
    batch, _, values = patches.shape
    side = round((values // 3) ** 0.5)
    tiles = patches.reshape(batch, *grid, side, side, 3).transpose(2, 3)
    return tiles.reshape(batch, grid[0] * side, grid[1] * side, 3)


def normalise(patches: Tensor) -> Tensor:
    """Scale uint8 patches as CLIP's preprocessing does: (x/255 - mean) / std for each channel.

    Args:
        patches: [..., D] uint8.

    Returns:
        [..., D] float32.
    """
    scale, shift = _scale_and_shift(patches.shape[-1] // 3, patches.device)
    return patches.float().mul_(scale).add_(shift)


@cache
def _scale_and_shift(num_pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each value of a patch, made once: a GPU would be waited for.

    One for each of the D values, as broadcasting over a last axis of 3 is slow.
    """
    scale = torch.tensor([1 / (255 * std) for std in CLIP_STD])
    shift = torch.tensor([-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)])
    return scale.repeat(num_pixels).to(device), shift.repeat(num_pixels).to(device)
