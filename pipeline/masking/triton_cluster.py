"""The cluster mask on CUDA: similarity and packing as Triton kernels, nothing waits for the host.

`max_anchor_similarity` reads the uint8 patches twice from the cache and writes one float a patch,
`anchor_similarity` one for each anchor; no normalised copy exists. `pack_visible` gathers the
visible patches; their number is known beforehand in modes budget, topk and fill, so no size is read
back.

The order statistic between them (`pipeline.masking.budget`) stays torch: `kthvalue` and `topk`
of 64-bit keys, which hold similarity, noise and place. All shapes follow from B, N and the
settings, and nothing is read back. No two keys of an image are equal, so within an image no tie is
left to the device; keys of two images are equal only where similarity, place and 16 bits of noise
are. A selection of our own would have little to save: 1024 images have 1.6 MB of keys, beside 154
MB of patches that the similarity reads.

Equal to the torch reference: tests/unit/pipeline/masking/test_triton.py under Triton's interpreter,
tests/gpu/test_masking.py on a device. Imported only when patches are on CUDA.

Legend: B images, N patches of an image, D values of a patch, A anchors of an image, T visible
patches of the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD

_SCALE = [1 / (255 * std) for std in CLIP_STD]
_SHIFT = [-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]


def max_anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor:
    """Similarity of every patch to the anchor it resembles most.

    Args:
        patches: [B, N, D] uint8.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N] float32 in -1 .. 1; exactly 1 at the anchors.
    """
    similarity = torch.empty(patches.shape[:2], device=patches.device)
    return _similarity(patches, anchors, similarity)


def anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor:
    """Similarity of every patch to every anchor of its image.

    Args:
        patches: [B, N, D] uint8.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N, A] float32 in -1 .. 1; exactly 1 where a patch is the anchor.
    """
    shape = (*patches.shape[:2], anchors.shape[1])
    return _similarity(patches, anchors, torch.empty(shape, device=patches.device))


def _similarity(patches: Tensor, anchors: Tensor, similarity: Tensor) -> Tensor:
    """Fill [B, N] with the largest over the anchors, or [B, N, A]."""
    num_images, num_patches, num_values = patches.shape
    patches, anchors = patches.contiguous(), anchors.contiguous()
    block = 32
    _similarity_kernel[(num_images, triton.cdiv(num_patches, block))](
        patches,
        anchors,
        similarity,
        num_patches,
        num_values,
        anchors.shape[1],
        *_SCALE,
        *_SHIFT,
        block_patches=block,  # pyright: ignore[reportArgumentType]
        block_anchors=max(16, triton.next_power_of_2(anchors.shape[1])),  # pyright: ignore[reportArgumentType]
        block_values=64,  # pyright: ignore[reportArgumentType]
        largest=similarity.ndim == 2,  # pyright: ignore[reportArgumentType]
    )
    return similarity


def pack_visible(
    patches: Tensor, visible: Tensor, num_visible: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the visible patches end to end.

    Args:
        patches: [B, N, D] uint8.
        visible: [B, N] bool.
        num_visible: T, how many are True; a wrong number cuts or leaves rows undefined.

    Returns:
        patches [T, D] uint8, their places [T] int32, and offsets [B+1] int32 of the images.
    """
    num_images, num_patches, num_values = patches.shape
    patches, visible = patches.contiguous(), visible.contiguous()
    ends = visible.flatten().cumsum(0, dtype=torch.int32)
    packed = patches.new_empty(num_visible, num_values)
    places = torch.empty(num_visible, dtype=torch.int32, device=patches.device)
    _gather_kernel[(num_images * num_patches,)](
        patches,
        visible.view(torch.uint8),
        ends,
        packed,
        places,
        num_patches,
        num_values,
        num_visible,
        block_values=triton.next_power_of_2(num_values),  # pyright: ignore[reportArgumentType]
    )
    offsets = torch.zeros(num_images + 1, dtype=torch.int32, device=patches.device)
    offsets[1:] = ends.view(num_images, num_patches)[:, -1]
    return packed, places, offsets


@triton.jit
def _normalised(rows, keep, start, num_values, s0, s1, s2, t0, t1, t2, block_values: tl.constexpr):
    """Normalised pixels [rows, block] from `start` on, 0 outside."""
    values = start + tl.arange(0, block_values)
    inside = keep[:, None] & (values < num_values)[None, :]
    channel = values % 3
    scale = tl.where(channel == 0, s0, tl.where(channel == 1, s1, s2))
    shift = tl.where(channel == 0, t0, tl.where(channel == 1, t1, t2))
    pixels = tl.load(rows[:, None] + values[None, :], mask=inside, other=0).to(tl.float32)
    return tl.where(inside, pixels * scale[None, :] + shift[None, :], 0.0), inside


@triton.jit
def _similarity_kernel(
    patches,
    anchors,
    similarity,
    num_patches,
    num_values,
    num_anchors,
    s0,
    s1,
    s2,
    t0,
    t1,
    t2,
    block_patches: tl.constexpr,
    block_anchors: tl.constexpr,
    block_values: tl.constexpr,
    largest: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block_patches + tl.arange(0, block_patches)
    which = tl.arange(0, block_anchors)
    is_patch, is_anchor = place < num_patches, which < num_anchors
    anchor = tl.load(anchors + image * num_anchors + which, mask=is_anchor, other=0)
    rows = patches + (image * num_patches + place) * num_values
    anchor_rows = patches + (image * num_patches + anchor) * num_values

    patch_mean = tl.zeros([block_patches], tl.float32)
    anchor_mean = tl.zeros([block_anchors], tl.float32)
    for start in range(0, num_values, block_values):
        y, _ = _normalised(rows, is_patch, start, num_values, s0, s1, s2, t0, t1, t2, block_values)
        z, _ = _normalised(
            anchor_rows, is_anchor, start, num_values, s0, s1, s2, t0, t1, t2, block_values
        )
        patch_mean += tl.sum(y, axis=1)
        anchor_mean += tl.sum(z, axis=1)
    patch_mean /= num_values
    anchor_mean /= num_values

    patch_square = tl.zeros([block_patches], tl.float32)
    anchor_square = tl.zeros([block_anchors], tl.float32)
    product = tl.zeros([block_patches, block_anchors], tl.float32)
    for start in range(0, num_values, block_values):
        y, inside = _normalised(
            rows, is_patch, start, num_values, s0, s1, s2, t0, t1, t2, block_values
        )
        z, inside_anchor = _normalised(
            anchor_rows, is_anchor, start, num_values, s0, s1, s2, t0, t1, t2, block_values
        )
        y = tl.where(inside, y - patch_mean[:, None], 0.0)
        z = tl.where(inside_anchor, z - anchor_mean[:, None], 0.0)
        patch_square += tl.sum(y * y, axis=1)
        anchor_square += tl.sum(z * z, axis=1)
        # TF32 would keep three digits only.
        product += tl.dot(y, tl.trans(z), input_precision="ieee")

    plain = patch_square + patch_mean * patch_mean * num_values
    anchor_plain = anchor_square + anchor_mean * anchor_mean * num_values
    # The square of `similarity._FLAT`: below it a patch is flat, and resembles nothing.
    flat = patch_square <= 1e-10 * plain
    flat_anchor = anchor_square <= 1e-10 * anchor_plain
    inverse = tl.where(flat, 0.0, 1 / tl.sqrt(tl.where(flat, 1.0, patch_square)))
    anchor_inverse = tl.where(
        flat_anchor, 0.0, 1 / tl.sqrt(tl.where(flat_anchor, 1.0, anchor_square))
    )
    value = product * anchor_inverse[None, :] * inverse[:, None]
    value = tl.minimum(tl.maximum(value, -1.0), 1.0)
    value = tl.where((place[:, None] == anchor[None, :]), 1.0, value)
    row = image * num_patches + place
    if largest:
        value = tl.where(is_anchor[None, :], value, -2.0)
        tl.store(similarity + row, tl.max(value, axis=1), mask=is_patch)
    else:
        cell = row[:, None] * num_anchors + which[None, :]
        tl.store(similarity + cell, value, mask=is_patch[:, None] & is_anchor[None, :])


@triton.jit
def _gather_kernel(
    patches,
    visible,
    ends,
    packed,
    places,
    num_patches,
    num_values,
    num_visible,
    block_values: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = (tl.load(ends + row) - 1).to(tl.int64)
    wanted = (tl.load(visible + row) != 0) & (target < num_visible)
    values = tl.arange(0, block_values)
    inside = (values < num_values) & wanted
    pixels = tl.load(patches + row * num_values + values, mask=inside)
    tl.store(packed + target * num_values + values, pixels, mask=inside)
    tl.store(places + target, (row % num_patches).to(tl.int32), mask=wanted)
