"""From similarities to visible patches: the four ways to say how much of a cluster is dropped.

All but `find_threshold` stays on the device of its inputs, without a host synchronisation.

Legend: B images, N patches of an image, G images of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

import torch
from torch import Tensor

from tessera.pipeline.masking.strategy import keep_lowest

_STEPS = 2000
"""Values of r tried between -1 and 1; between two of them r is interpolated."""


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


def find_threshold(
    similarities: Iterable[Tensor],
    *,
    mask_ratio: float,
    bounds: Callable[[int], tuple[int, int]],
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Find r so that on average mask_ratio of an image's patches is dropped.

    The released code meant to search r by bisection but never did (docs/pipeline.md). Here the
    share dropped is counted once for every r of a fixed grid, so the search is bounded, and one sum
    over the ranks makes all agree.

    Args:
        similarities: [B, N] of each batch. Seed their noise, and r is a function of the seed.
        mask_ratio: share dropped, bounds included.
        bounds: of N, the patches each image keeps at least and at most.
        all_reduce: sums a float64 tensor over all ranks; left out, there is one rank.

    Returns:
        r, the same on all ranks.

    Raises:
        ValueError: no batch was given, or no r reaches mask_ratio within the bounds.
    """
    grid = torch.linspace(-1, 1, _STEPS + 1)
    dropped = torch.zeros(_STEPS + 2, dtype=torch.float64)
    for similarity in similarities:
        num_images, num_patches = similarity.shape
        least, most = bounds(num_patches)
        ordered = similarity.float().cpu().sort(dim=1).values
        outside = torch.searchsorted(ordered, grid.expand(num_images, -1).contiguous(), right=True)
        dropped[:-1] += (num_patches - outside.clamp(least, most)).double().sum(dim=0)
        dropped[-1] += num_images * num_patches
    dropped = all_reduce(dropped) if all_reduce else dropped
    if not dropped[-1]:
        raise ValueError("a threshold needs at least one batch to be found from")
    share = (dropped[:-1] / dropped[-1]).tolist()
    if not share[-1] <= mask_ratio <= share[0]:
        raise ValueError(
            f"no threshold drops {mask_ratio} of these patches: within the bounds of each image it "
            f"is {share[-1]:.3f} to {share[0]:.3f}; change mask_ratio or min_mask_ratio"
        )
    above = next(i for i in range(_STEPS, -1, -1) if share[i] >= mask_ratio)
    if above == _STEPS:
        return 1.0
    part = (share[above] - mask_ratio) / (share[above] - share[above + 1])
    return float(grid[above] + part * (grid[above + 1] - grid[above]))


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
