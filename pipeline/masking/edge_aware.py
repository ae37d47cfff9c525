"""Edge-aware clusters: the idea of CLIP-PGS (Pei et al., CVPR 2025, arXiv 2503.17080).

What is published. Abstract and figure 1: a few candidate patches are chosen as seeds of what will
be masked; a Sobel edge mask keeps the main objects out of it; the similarities of the candidates
to the other patches are balanced by optimal transport, and the most similar are dropped. The
released code (clip-pgs/CLIP-PGS, cdeb109; read, and run on 90 photos) is that of Cluster Masking
with 5% anchors and two additions, neither of which does what the paper says:

- Sobel is applied to the means of patches that were standardised before, which is rounding noise.
  The anchors' true edge strength ranks at 0.500 of an image on average, as by chance. By the order
  of its sort, strong "edges" would become anchors, though its comment says the opposite.
- Rows and columns of the cosines, which may be negative, are divided by their sums: not a transport
  plan. Entries reach 4e5, and 9% of all comparisons with the threshold come out otherwise.

Here both parts do what the text says, and the rest is that of `ClusterMask`: an exact budget
instead of padding, N x A similarities instead of N x N. Published figures of CLIP-PGS say nothing
about this mask.

Legend: B images, N patches of an image in R rows and C columns, A anchors of an image, p side of a
patch in pixels, D = 3*p*p values of a patch in (y, x, channel) order, H = R*p, W = C*p.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from tessera.pipeline.masking.budget import sort_key
from tessera.pipeline.masking.cluster import ClusterMask
from tessera.pipeline.masking.config import check_candidate_ratio
from tessera.pipeline.masking.strategy import grid_shape, keep_lowest

_ENTROPY = 0.1
"""Weight of the plan's entropy, in units of similarity: how soft the matching is."""
_ITERATIONS = 20
"""Sinkhorn's iterations; a fixed number, so that nothing waits for convergence."""
_CHUNK = 8
"""Images at once on a CPU; more would leave its cache."""


@dataclass(frozen=True)
class EdgeAwareMask(ClusterMask):
    """Drop clusters around anchors without strong edges, shared out evenly among the anchors.

    Anchors are drawn among the patches with the weakest edges, so that outlines and detail are less
    often the seed of a cluster. What is compared with the threshold or put in order is the mean of
    a patch's similarity to an anchor and of its share in the balanced matching of patches with
    anchors (see `balanced_matching`); modes, bounds and groups are those of `ClusterMask`.
    """

    candidate_ratio: float = 0.5
    """Share of an image's patches that may become anchors, those with the weakest edges; at least
    the anchors themselves. 1 draws from all."""
    grid: tuple[int, int] | None = None
    """(R, C); left out, the image is square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_candidate_ratio(self.candidate_ratio)

    def similarity(self, patches: Tensor, noise: Tensor) -> Tensor:
        """Mean of similarity and matching with the anchor where it is largest, [B, N]."""
        return self.by_anchor(patches, self.draw_anchors(patches, noise)).amax(dim=2)

    def by_anchor(self, patches: Tensor, anchors: Tensor) -> Tensor:
        """Mean of similarity and matching of every patch and anchor, [B, N, A] in -0.5 .. 1."""
        alike = super().by_anchor(patches, anchors)
        mean = (alike + balanced_matching(alike)) / 2
        mean.mT.scatter_(2, anchors[:, :, None], 1.0)
        return mean

    def draw_anchors(self, patches: Tensor, noise: Tensor) -> Tensor:
        """Places of the anchors among the candidates, [B, A] long."""
        strength = edge_strength(patches, self.grid)
        num_patches = noise.shape[1]
        count = max(self.num_anchors(num_patches), ceil(num_patches * self.candidate_ratio))
        # Equal strengths, as in a flat image, are put in order by the noise, not by their place.
        candidates = keep_lowest(sort_key(strength, noise), count)
        return super().draw_anchors(patches, noise.where(candidates, -1.0))


def balanced_matching(similarity: Tensor) -> Tensor:
    """Match patches with anchors so that all anchors get the same share of the patches.

    The transport plan P that makes sum(P * similarity) + 0.1 * entropy(P) largest where every patch
    has a mass of 1 and every anchor takes N/A, by Sinkhorn's iterations (Cuturi, NeurIPS 2013).

    Args:
        similarity: [B, N, A] in -1 .. 1.

    Returns:
        [B, N, A] float32, 0 to 1. The shares of a patch sum to 1, those of an anchor to N/A as
        nearly as 20 iterations get.
    """
    kernel = ((similarity - 1) / _ENTROPY).exp()
    share = similarity.shape[1] / similarity.shape[2]
    of_anchor = kernel.new_ones(len(kernel), kernel.shape[2], 1)
    for _ in range(_ITERATIONS):
        of_patch = 1 / torch.bmm(kernel, of_anchor)
        of_anchor = share / torch.bmm(kernel.mT, of_patch)
    # Patches last: their shares sum to 1 exactly, those of the anchors nearly.
    return kernel * of_anchor.mT / torch.bmm(kernel, of_anchor)


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
