"""Anchor similarity of uint8 patches on a CPU in compiled code, four times as fast as in torch."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tessera.pipeline.native import CompilationError, load_library
from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD

logger = logging.getLogger(__name__)

MAX_VALUES = 196_608
"""Beyond so many values of a patch (256 x 256 pixels), 32-bit sums might overflow."""
_SOURCE = Path(__file__).with_name("anchor_similarity.c")
_SCALE = np.array([1 / (255 * std) for std in CLIP_STD], dtype=np.float64)
_SHIFT = np.array(
    [-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)], dtype=np.float64
)


def max_anchor_similarity(patches: Tensor, anchors: Tensor) -> Tensor | None:
    """Similarity of every patch to the anchor it resembles most.

    Args:
        patches: [B, N, D] uint8 on the CPU, D in (y, x, channel) order.
        anchors: [B, A] long, places of the anchors.

    Returns:
        [B, N] float32 in -1 .. 1, exactly 1 at the anchors; None where this machine has no C
        compiler or the patches are too large.

    Raises:
        ValueError: anchors of another batch, that are no places of patches or no whole numbers, or
            patches without three channels.
    """
    library = _library()
    num_images, num_patches, num_values = patches.shape
    if library is None or num_values > MAX_VALUES:
        return None
    _check(anchors, num_images, num_patches, num_values)
    patches, anchors = patches.contiguous(), anchors.long().contiguous()
    similarity = torch.empty(num_images, num_patches)
    failed = library.tessera_similarity(
        patches.data_ptr(),
        anchors.data_ptr(),
        num_images,
        num_patches,
        num_values,
        anchors.shape[1],
        _SCALE.ctypes.data,
        _SHIFT.ctypes.data,
        torch.get_num_threads(),
        similarity.data_ptr(),
    )
    if failed:
        raise MemoryError("no memory for the anchors' copies")
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
def _library() -> ctypes.CDLL | None:
    try:
        library = load_library([_SOURCE])
    except CompilationError as error:
        logger.warning("%s; torch computes the cluster mask instead, several times slower", error)
        return None
    library.tessera_similarity.restype = ctypes.c_int
    library.tessera_similarity.argtypes = [
        ctypes.c_void_p,  # [B, N, D] uint8 patches
        ctypes.c_void_p,  # [B, A] int64 anchors
        ctypes.c_int,  # B
        ctypes.c_int,  # N
        ctypes.c_int,  # D
        ctypes.c_int,  # A
        ctypes.c_void_p,  # [3] double scale
        ctypes.c_void_p,  # [3] double shift
        ctypes.c_int,  # threads
        ctypes.c_void_p,  # [B, N] float similarity, written
    ]
    return library
