"""From similarities to visible patches: the four ways to say how much of a cluster is dropped.

Everything is on the device of its inputs, without a host synchronisation.

Legend: B images, N patches of an image, G images of a group.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from tessera.pipeline.masking.strategy import keep_lowest


def budget(num_images: int, num_patches: int, ratio: float) -> int:
    """Patches that stay of all images of a group together."""
    return round(num_images * num_patches * (1 - ratio))


def within_budget(
    similarity: Tensor, noise: Tensor, *, group_size: int, ratio: float, least: int, most: int
) -> Tensor:
    """Keep exactly round(G*N*(1-ratio)) patches of every group together, the least similar.

    Args:
        similarity: [B, N] float32.
        noise: [B, N] in [0, 1); decides between equal similarities.
        group_size: G, consecutive images that share a budget; divides B.
        ratio: share dropped.
        least: patches each image keeps at least.
        most: patches each image keeps at most. Both bounds give way where rounding makes them
            clash with the budget.

    Returns:
        visible: [B, N] bool.
    """
    num_images, num_patches = similarity.shape
    total = budget(group_size, num_patches, ratio)
    least, most = min(least, total // group_size), max(most, ceil(total / group_size))
    key = sort_key(similarity, noise)
    if least:
        key = key.masked_fill(key <= _ranked(key, least), torch.iinfo(torch.int64).min)
    if most < num_patches:
        key = key.masked_fill(key > _ranked(key, most), torch.iinfo(torch.int64).max)
    # All groups in one call: on a GPU a loop over them would cost more to launch than to run.
    key = key.view(num_images // group_size, group_size * num_patches)
    chosen = key.topk(total, dim=1, largest=False, sorted=False).indices
    visible = torch.zeros_like(key, dtype=torch.bool).scatter_(1, chosen, True)
    return visible.view(num_images, num_patches)


def least_similar(similarity: Tensor, noise: Tensor, *, count: int) -> Tensor:
    """Keep the `count` least similar patches of every image; [B, N] bool."""
    key = sort_key(similarity, noise)
    return key <= _ranked(key, count)


def below_threshold(
    similarity: Tensor, noise: Tensor, *, threshold: float, least: int, most: int
) -> Tensor:
    """Keep what no cluster holds: similarity at most `threshold`; [B, N] bool.

    An image that would keep more than `most` loses some at random; one that would keep fewer than
    `least` gets its least similar patches back.
    """
    outside = similarity <= threshold
    count = outside.sum(dim=1, keepdim=True).clamp(least, most)
    return keep_lowest(torch.where(outside, noise, 2 + similarity), count)


def fill_up(similarity: Tensor, noise: Tensor, *, threshold: float, count: int) -> Tensor:
    """Keep `count` patches of every image: those outside all clusters first; [B, N] bool.

    Where they are too few, patches of the clusters are let back in at random; where they are too
    many, some of them are left out at random.
    """
    # Anchors are the highest noise, so the order within a cluster takes its lower digits.
    order = (noise * 4096) % 1
    return keep_lowest(torch.where(similarity <= threshold, order, 1 + order), count)


def sort_key(similarity: Tensor, noise: Tensor) -> Tensor:
    """Order by similarity, equal ones by noise, and no two of an image alike: [B, N] int64.

    N is below 2**16.
    """
    bits = (similarity + 0.0).contiguous().view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    places = torch.arange(similarity.shape[1], device=similarity.device)
    return ordered | ((noise * 2**16).long() << 16) | places


def _ranked(key: Tensor, count: int) -> Tensor:
    """The `count`-th smallest of each row, [B, 1]."""
    return key.kthvalue(count, dim=1, keepdim=True).values
