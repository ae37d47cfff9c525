"""Masks that do not look at the picture: none, random, grid and block.

Legend: B images, N patches of an image in R rows and C columns, D values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.pipeline.masking.config import check_grid_ratio, check_ratio
from tessera.pipeline.masking.strategy import MaskStrategy, grid_shape, keep_lowest, num_kept


@dataclass(frozen=True)
class NoMask(MaskStrategy):
    """Everything is visible: plain CLIP, and every evaluation."""

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """All True, [B, N]."""
        return torch.ones_like(noise, dtype=torch.bool)

    def num_visible(self, num_images: int, num_patches: int) -> int:
        """All."""
        return num_images * num_patches


@dataclass(frozen=True)
class RandomMask(MaskStrategy):
    """The same number of patches from every image, drawn uniformly (FLIP, arXiv 2212.00794)."""

    mask_ratio: float = 0.5
    """Share of each image's patches that is dropped; N*(1-mask_ratio) is truncated, as FLIP's."""

    def __post_init__(self) -> None:
        check_ratio("mask_ratio", self.mask_ratio)

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """[B, N] bool with int(N * (1 - mask_ratio)) True in each row, at least one."""
        return keep_lowest(noise, num_kept(noise.shape[1], self.mask_ratio))

    def num_visible(self, num_images: int, num_patches: int) -> int:
        """The same of every image."""
        return num_images * num_kept(num_patches, self.mask_ratio)


@dataclass(frozen=True)
class GridMask(MaskStrategy):
    """One patch of every k x k window, or a checkerboard (CLIPA, arXiv 2305.07017, figure 1).

    CLIPA's figure shows the top-left patch of each 2x2 window; its text leaves open whether the
    place is drawn. `random_offset` draws one place for each image.
    """

    mask_ratio: float = 0.75
    """0.5 is a checkerboard; otherwise 1 - 1/k**2: 0.75 for k=2, 0.8889 for k=3, ..."""
    random_offset: bool = True
    """Draw the place in the window for each image; False always keeps the top-left one."""
    grid: tuple[int, int] | None = None
    """(R, C); left out, the image is square."""

    def __post_init__(self) -> None:
        check_ratio("mask_ratio", self.mask_ratio)
        check_grid_ratio(self.mask_ratio)

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """[B, N] bool; one in each window, or every second patch."""
        rows, columns = _grid_places(noise, self.grid)
        window = check_grid_ratio(self.mask_ratio)
        draw = noise[:, :1] if self.random_offset else torch.zeros_like(noise[:, :1])
        if self.mask_ratio == 0.5:
            return (rows + columns) % 2 == (draw * 2).long()
        place = (draw * window**2).long()
        return (rows % window == place // window) & (columns % window == place % window)

    def num_visible(self, num_images: int, num_patches: int) -> int | None:
        """The same of every image where the windows fill the grid; None where some are cut."""
        rows, columns = grid_shape(num_patches, self.grid)
        if self.mask_ratio == 0.5:
            return None if num_patches % 2 else num_images * num_patches // 2
        window = check_grid_ratio(self.mask_ratio)
        if rows % window or columns % window:
            return None
        return num_images * (rows // window) * (columns // window)


@dataclass(frozen=True)
class BlockMask(MaskStrategy):
    """One contiguous block of each image stays (CLIPA, arXiv 2305.07017, figure 1).

    CLIPA's figure shows a centred square; its text gives no rule for the place. Drawn for each
    image here, so that every position of the grid is trained; `centred` gives the figure's.
    """

    mask_ratio: float = 0.75
    """Share dropped; the block's sides are sqrt(1 - mask_ratio) of the grid's, rounded."""
    centred: bool = False
    """Keep the block in the middle of the picture."""
    grid: tuple[int, int] | None = None
    """(R, C); left out, the image is square."""

    def __post_init__(self) -> None:
        check_ratio("mask_ratio", self.mask_ratio)

    def visible(self, patches: Tensor, noise: Tensor) -> Tensor:
        """[B, N] bool; a rectangle of True in each image."""
        rows, columns = _grid_places(noise, self.grid)
        inside = []
        for axis, (places, extent) in enumerate(
            zip((rows, columns), grid_shape(noise.shape[1], self.grid), strict=True)
        ):
            side = self._side(extent)
            free = extent - side
            draw = noise[:, axis : axis + 1]
            start = free // 2 if self.centred else (draw * (free + 1)).long()
            inside.append((places >= start) & (places < start + side))
        return inside[0] & inside[1]

    def num_visible(self, num_images: int, num_patches: int) -> int:
        """The block's area in every image."""
        rows, columns = grid_shape(num_patches, self.grid)
        return num_images * self._side(rows) * self._side(columns)

    def _side(self, extent: int) -> int:
        return max(1, round(extent * (1 - self.mask_ratio) ** 0.5))


def _grid_places(noise: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Row and column of every patch, each [B, N] long."""
    _, columns = grid_shape(noise.shape[1], grid)
    places = torch.arange(noise.shape[1], device=noise.device).expand(noise.shape)
    return places // columns, places % columns
