"""Position tables: the fixed one, and tables resized for another image size or caption length.

Shapes: N patches of a full image, C the context length, W channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sin_cos_table(grid_size: int, width: int) -> Tensor:
    """Fixed image positions, as He et al. 2022 (MAE, appendix A.1) and open_clip have them.

    The first half of the channels holds sines and cosines of the column, the second half those
    of the row, with wavelengths from 2*pi to 10,000*2*pi. The class token's row is zero.

    Args:
        grid_size: Patches along a side.
        width: W, a multiple of 4.

    Returns:
        [N+1, W] float32.
    """
    quarter = width // 4
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid_size, dtype=torch.float64).outer(frequency)
    side = torch.cat([angle.sin(), angle.cos()], dim=1)
    columns, rows = side.repeat(grid_size, 1), side.repeat_interleave(grid_size, dim=0)
    patches = torch.cat([columns, rows], dim=1)
    return torch.cat([patches.new_zeros(1, width), patches]).float()


def resize_image_positions(table: Tensor, num_patches: int, *, class_token: bool = True) -> Tensor:
    """Resizes a table of a square grid, bicubic with antialiasing; the class token's row stays.

    Args:
        table: [..., 1+M, W], class token first, M a square; [..., M, W] without one. Dimensions
            before these have length 1.
        num_patches: N of the new grid, a square.
        class_token: whether the first row is a class token's.

    Returns:
        [..., 1+N, W] or [..., N, W] in the table's type.

    Raises:
        ValueError: One of the two is no square grid.
    """
    before, table = table.shape[:-2], table.flatten(0, -2)
    num_class = int(class_token)
    old, new = math.isqrt(len(table) - num_class), math.isqrt(num_patches)
    if old**2 != len(table) - num_class or new**2 != num_patches:
        grids = "a class token and a square grid" if class_token else "a square grid"
        raise ValueError(
            f"a position table of {len(table)} rows cannot become one of "
            f"{num_patches + num_class}: both must be {grids}"
        )
    grid = table[num_class:].float().unflatten(0, (old, old)).permute(2, 0, 1)
    grid = F.interpolate(grid[None], size=(new, new), mode="bicubic", antialias=True)[0]
    resized = torch.cat([table[:num_class], grid.flatten(1).T.to(table.dtype)])
    return resized.reshape(*before, *resized.shape)


def resize_text_positions(table: Tensor, context_length: int) -> Tensor:
    """Resizes a text table linearly.

    Args:
        table: [M, W].
        context_length: C, the new number of rows.

    Returns:
        [C, W] in the table's type.
    """
    resized = F.interpolate(table.float().T[None], size=context_length, mode="linear")[0]
    return resized.T.contiguous().to(table.dtype)
