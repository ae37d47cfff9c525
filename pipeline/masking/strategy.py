"""What every mask strategy is: a function from patches and noise to visibility.

Legend: B images, N patches of an image, D values of a patch, K clusters of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """What a strategy took for alike, for people to look at."""

    members: Tensor
    """[B, N] long, cluster of every patch, 0 .. K-1."""
    seeds: Tensor
    """[B, K] long, place of the patch that each cluster was grown from."""


class MaskStrategy(ABC):
    """Decides which patches of each image the model gets to see.

    A strategy keeps no state. All its randomness is in one array of noise, one number for each
    patch, so that the loader can draw it from (seed, pass, sample id) and a test from a generator.
    """

    def __call__(self, patches: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Choose the visible patches.

        Args:
            patches: [B, N, D]; uint8 pixels, or floats taken as already normalised.
            generator: source of the noise, on the CPU; torch's default one if left out.

        Returns:
            visible: [B, N] bool.
        """
        noise = torch.rand(patches.shape[:2], generator=generator)
        return self.visible(patches, noise.to(patches.device))

    @abstractmethod
    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """Choose the visible patches from given noise.

        Args:
            patches: [B, N, D] as in `__call__`.
            noise: [B, N] float32 in [0, 1), on the patches' device.

        Returns:
            [B, N] bool.
        """

    def clusters(self, patches: Tensor, noise: Tensor) -> Clusters | None:
        """The clusters that `visible` goes by for the same patches and noise; None has none."""
        del patches, noise
        return None

    def num_visible(self, num_images: int, num_patches: int) -> int | None:
        """Visible patches of a batch where they are known beforehand; None where they are not."""
        del num_images, num_patches
        return None

    def most_visible(self, num_patches: int) -> int:
        """Upper bound of the visible patches of one image, whatever the image."""
        return self.num_visible(1, num_patches) or num_patches


def grid_shape(num_patches: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of an image's patches; square where `grid` is left out.

    Raises:
        ValueError: the patches do not fill the grid.
    """
    rows, columns = grid or (isqrt(num_patches), isqrt(num_patches))
    if rows * columns != num_patches:
        raise ValueError(f"{num_patches} patches are no {rows}x{columns} grid: pass grid=(R, C)")
    return rows, columns


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Patches that stay of every image: N * (1 - mask_ratio) truncated, at least one."""
    return max(1, int(num_patches * (1 - mask_ratio) + 1e-9))


def keep_lowest(values: Tensor, count: int | Tensor) -> Tensor:
    """Mark the `count` lowest values of each row.

    Args:
        values: [B, N] sortable.
        count: the same for all rows, or [B, 1].

    Returns:
        [B, N] bool.
    """
    order = values.argsort(dim=1, stable=True)
    chosen = torch.arange(values.shape[1], device=values.device) < count
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, chosen.expand_as(values))
