"""The similarity threshold r that drops a wanted share of patches, found from several batches.

The released code meant to search r by bisection but never did (docs/pipeline.md). Here the share
dropped is counted once for every r of a fixed grid, so the search is bounded and one sum over the
ranks makes all agree.

Legend: B images, N patches of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_STEPS = 2000
"""Values of r tried between -1 and 1; between two of them r is interpolated."""


def find_threshold(
    similarities: Iterable[Tensor],
    *,
    mask_ratio: float,
    least: int,
    most: int,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Find r so that on average mask_ratio of an image's patches is dropped.

    Args:
        similarities: [B, N] of each batch. Seed their noise, and r is a function of the seed.
        mask_ratio: share dropped, bounds included.
        least: patches each image keeps at least.
        most: patches each image keeps at most.
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
