"""How strong the edges in every patch are, by Sobel's filter over the whole image.

Legend: B images, N patches of an image in R rows and C columns, p side of a patch in pixels,
D = 3*p*p values of a patch in (y, x, channel) order, H = R*p, W = C*p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tessera.pipeline.masking.strategy import grid_shape

_CHUNK = 8
"""Images at once on a CPU; more would leave its cache."""


def edge_strength(patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Mean of |dx| + |dy| over the pixels of every patch.

    dx and dy are Sobel's differences of the sum of the channels; the border is continued. Of uint8
    patches all sums are whole numbers that float32 holds (p up to 52), so every device finds the
    same strengths, bit for bit.

    Args:
        patches: [B, N, D] uint8, or float.
        grid: (R, C); left out, the image is square.

    Returns:
        [B, N] float32, 0 and more.

    Raises:
        ValueError: N does not fill the grid, or D is not that of a square patch of 3 channels.
    """
    shape = grid_shape(patches.shape[1], grid)
    side = round((patches.shape[2] / 3) ** 0.5)
    if 3 * side * side != patches.shape[2]:
        raise ValueError(f"a square patch of 3 channels has 3*p*p values, not {patches.shape[2]}")
    chunk = _CHUNK if patches.device.type == "cpu" else max(1, len(patches))
    return torch.cat([_strength(some, shape, side) for some in patches.split(chunk)])


def _strength(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    rows, columns = grid
    tiles = _brightness(patches).view(-1, rows, columns, side, side).transpose(2, 3)
    steps = _sobel(tiles.reshape(len(patches), rows * side, columns * side))
    # One axis after the other is faster than both at once.
    sums = steps.view(-1, rows, side, columns, side).sum(dim=2, dtype=_wide(steps)).sum(dim=3)
    return sums.flatten(1).float() / side**2


def _brightness(patches: Tensor) -> Tensor:
    """Sum of the channels of every pixel, [B, N, p*p]; int16 of uint8."""
    values = patches.short() if patches.dtype == torch.uint8 else patches.float()
    return values[..., 0::3] + values[..., 1::3] + values[..., 2::3]


def _sobel(image: Tensor) -> Tensor:
    """|dx| + |dy| of [B, H, W], same dtype and shape."""
    tall = torch.cat([image[:, :1], image, image[:, -1:]], dim=1)
    wide = torch.cat([tall[:, :, :1], tall, tall[:, :, -1:]], dim=2)
    down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    across = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
    dx, dy = down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]
    return dx.abs_().add_(dy.abs_())


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.is_floating_point() else torch.int32
