"""Anchor similarity of uint8 patches on a CPU in compiled code, four times as fast as in torch."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from tessera.pipeline.native import NotBuiltError, load_native
from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD

logger = logging.getLogger(__name__)

MAX_VALUES = 196_608
"""Beyond so many values of a patch (256 x 256 pixels), 32-bit sums might overflow."""
_MOST_THREADS = 256
_SCALE = tuple(1 / (255 * std) for std in CLIP_STD)
_SHIFT = tuple(-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True))


def max_anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor | None:
    """Similarity of every patch to the anchor it resembles most.

    Args:
        patches: [B, N, D] uint8 on the CPU, D in (y, x, channel) order.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N] float32 in -1 .. 1, exactly 1 at the anchors; None where the C
        extension is not built or the patches are too large.

    Raises:
        ValueError: anchors of another batch, that are no places of patches or no whole numbers, or
            patches without three channels.
    """
    native = _native()
    num_images, num_patches, num_values = patches.shape
    if native is None or num_values > MAX_VALUES:
        return None
    _check(anchors, num_images, num_patches, num_values)
    patches, anchors = patches.contiguous(), anchors.long().contiguous()
    similarity = torch.empty(num_images, num_patches)
    native.similarity(
        patches.numpy(),
        anchors.numpy(),
        similarity.numpy(),
        (num_images, num_patches, num_values, anchors.shape[1]),
        _SCALE,
        _SHIFT,
        min(torch.get_num_threads(), _MOST_THREADS),
    )
    return similarity


def _check(anchors: Tensor, num_images: int, num_patches: int, num_values: int) -> None:
    # C would write similarities wherever an anchor says.
    if anchors.ndim != 2 or len(anchors) != num_images or anchors.is_floating_point():
        raise ValueError(
            f"anchors of {num_images} images are [{num_images}, A] whole numbers, got "
            f"{list(anchors.shape)} of {anchors.dtype}"
        )
    if num_values % 3:
        raise ValueError(f"a patch has three channels, so D is a multiple of 3, got {num_values}")
    if anchors.numel() and not 0 <= int(anchors.min()) <= int(anchors.max()) < num_patches:
        raise ValueError(
            f"anchors are places 0 to {num_patches - 1}, got {int(anchors.min())} to "
            f"{int(anchors.max())}"
        )


@cache
def _native() -> ModuleType | None:
    try:
        return load_native()
    except NotBuiltError as error:
        logger.warning("%s; until then torch computes the cluster mask, but slower", error)
        return None
