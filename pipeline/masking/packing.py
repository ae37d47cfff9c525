"""Visible patches of a batch, gathered end to end.

Legend: B images, N patches of an image, D values of a patch, T visible patches of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_visible(
    patches: Tensor, visible: Tensor, num_visible: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the visible patches, image after image.

    On CUDA it is one kernel where T is given; otherwise the host has to wait for T.

    Args:
        patches: [B, N, D] uint8.
        visible: [B, N] bool.
        num_visible: T from `MaskStrategy.num_visible`; None counts.

    Returns:
        patches [T, D] uint8, their places [T] int32, and offsets [B+1] int32 of the images.
    """
    if patches.is_cuda and num_visible is not None:
        from tessera.pipeline.masking import triton_cluster

        return triton_cluster.pack_visible(patches, visible, num_visible)
    chosen = visible.flatten().nonzero().squeeze(1)
    offsets = torch.zeros(len(visible) + 1, dtype=torch.int32, device=visible.device)
    offsets[1:] = visible.sum(dim=1).cumsum(dim=0)
    packed = patches.flatten(0, 1).index_select(0, chosen)
    return packed, (chosen % visible.shape[1]).int(), offsets
