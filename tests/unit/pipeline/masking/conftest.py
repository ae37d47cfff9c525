"""Pictures for mask tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tessera.pipeline.patches import patchify

DrawPictures = Callable[..., Tensor]


@pytest.fixture(scope="session")
def draw_pictures() -> DrawPictures:
    """Patches [B, R*C, 3*p*p] uint8 of shaded pictures, noisy in their right half."""

    def draw(num_images: int, grid: tuple[int, int], side: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        height, width = grid[0] * side, grid[1] * side
        coarse = torch.rand(num_images, 3, 3, 3, generator=generator) * 400 - 70
        smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        rough = 25 * torch.randn(smooth.shape, generator=generator)
        pixels = smooth + rough * (torch.arange(width) >= width // 2)
        return patchify(pixels.clamp(0, 255).byte().permute(0, 2, 3, 1), side)

    return draw
