"""Anchor similarity of uint8 patches on a CPU, with fewer passes than the definition.

The definition passes seven times over a float copy of all patches. Here it is four times. With
z = s * (x - 128) the scaled pixels, t a shift for each channel, y = z + t the normalised pixels,
and u the anchors, centred and of length 1, so that they sum to 0:

    u.y = u.z + u.t
    |y - mean(y)|^2 = |z|^2 + 2 z.t + |t|^2 - sum(z + t)^2 / D

u.z and the sums of x in each channel, which are exact integers and give z.t and sum(z), come from
one matrix product of an image. The second line cancels where a patch is nearly flat; the length of
such patches (1 in 700 of COCO's) is taken again by its definition.

Legend: B images, N patches of an image, D values of a patch, A anchors of an image, K rows.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD, normalise

_CHUNK = 4
"""Images at once; their float copies then stay in a CPU's cache, and calls cost little."""
_NEARLY_FLAT = 1e-3
"""Ratio of centred to plain square sum, below which the first is taken again."""
_FLAT = 1e-8
"""Square sum about the mean below which a patch has no direction; one grey level in one value of
768 makes 2e-4."""


def max_anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor:
    """Similarity of every patch to the anchor it resembles most.

    Args:
        patches: [B, N, D] uint8 on the CPU.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N] float32 in -1 .. 1; exactly 1 at the anchors.
    """
    num_images, _, num_values = patches.shape
    num_anchors = anchors.shape[1]
    scale, shift = _scale_and_shift(num_values)
    units = _units(patches[torch.arange(num_images)[:, None], anchors])
    rows = units.new_zeros(num_images, _even(num_anchors + 3), num_values)
    torch.mul(units, scale, out=rows[:, :num_anchors])
    rows[:, -3:] = torch.eye(3).repeat(1, num_values // 3)
    products, squares = _products_and_squares(patches, rows)
    length = _squared_length(products[:, -3:].double(), squares, num_values)
    flat = (length < _NEARLY_FLAT * squares).nonzero(as_tuple=True)
    length[flat] = _squared_length_again(patches[flat])
    inverse = torch.where(length > _FLAT, length.rsqrt(), 0.0).float()
    largest = products[:, :num_anchors].add_((units @ shift)[:, :, None]).amax(dim=1)
    return largest.mul_(inverse).clamp_(-1, 1).scatter_(1, anchors, 1.0)


def _products_and_squares(patches: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Products of rows [B, K, D] with pixels less 128, [B, K, N], and |z|^2, [B, N]."""
    num_images, num_patches, num_values = patches.shape
    scale, _ = _scale_and_shift(num_values)
    products = torch.empty(num_images, rows.shape[1], num_patches)
    squares = torch.empty(num_images, num_patches)
    signed = torch.empty(_CHUNK, num_patches, num_values, dtype=torch.uint8)
    floats = torch.empty(_CHUNK, num_patches, num_values)
    for first in range(0, num_images, _CHUNK):
        some = slice(first, min(first + _CHUNK, num_images))
        size = some.stop - first
        torch.bitwise_xor(patches[some], 128, out=signed[:size])  # x - 128 as a signed byte
        values = floats[:size].copy_(signed[:size].view(torch.int8))
        torch.bmm(rows[some], values.mT, out=products[some])
        values.mul_(scale)
        # numpy's dot of rows is one pass; torch's would write the products first.
        np.vecdot(values.numpy(), values.numpy(), out=squares[some].numpy())
    return products, squares


def _units(patches: Tensor) -> Tensor:
    """Uint8 patches [B, n, D] normalised, centred and of length 1; a flat one is 0."""
    values = normalise(patches)
    values -= values.mean(dim=2, keepdim=True)
    return torch.nn.functional.normalize(values, dim=2, eps=1e-4)


def _squared_length(sums: Tensor, squares: Tensor, num_values: int) -> Tensor:
    """|y - mean(y)|^2 of each patch, [B, N] float64, from sums [B, 3, N] of its channels."""
    scale, shift = (value[:3].double() for value in _scale_and_shift(num_values))
    num_pixels = num_values // 3
    constant = num_pixels * shift.square().sum()
    total = (scale @ sums).add_(num_pixels * shift.sum())
    return ((2 * scale * shift) @ sums).add_(squares + constant).sub_(total.square_() / num_values)


def _squared_length_again(patches: Tensor) -> Tensor:
    """The same for patches [n, D] by its definition."""
    scale, shift = _scale_and_shift(patches.shape[1])
    values = (patches.double() - 128) * scale + shift
    return (values - values.mean(dim=1, keepdim=True)).square().sum(dim=1)


@cache
def _scale_and_shift(num_values: int) -> tuple[Tensor, Tensor]:
    """S and t of `y = s * (x - 128) + t`, each [D] float32."""
    std = torch.tensor(CLIP_STD, dtype=torch.float64).repeat(num_values // 3)
    mean = torch.tensor(CLIP_MEAN, dtype=torch.float64).repeat(num_values // 3)
    return (1 / (255 * std)).float(), ((128 / 255 - mean) / std).float()


def _even(number: int) -> int:
    # MKL takes a quarter longer for 7 rows than for 8.
    return number + number % 2
