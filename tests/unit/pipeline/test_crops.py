"""Crop windows lie in the picture and follow torchvision's distribution."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from tessera.pipeline.counter_random import Purpose, uniforms
from tessera.pipeline.crops import DRAWS_PER_WINDOW, CropConfig, centre_windows, draw_windows


def windows_of(width: int, height: int, crop: CropConfig, count: int) -> np.ndarray:
    draws = uniforms(0, 0, np.arange(count), Purpose.CROP, DRAWS_PER_WINDOW)
    widths, heights = np.full(count, width, np.int32), np.full(count, height, np.int32)
    return draw_windows(widths, heights, draws, crop)


@pytest.mark.parametrize("size", [(640, 426), (100, 100), (1, 1), (2000, 3), (3, 2000), (224, 999)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.4, 1.0), (0.05, 0.1)])
def test_windows_lie_in_the_picture(size: tuple[int, int], scale: tuple[float, float]) -> None:
    y, x, height, width = windows_of(*size, CropConfig(scale=scale), 500).T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (x + width <= size[0]).all()
    assert (y + height <= size[1]).all()


def test_windows_are_distributed_as_torchvisions() -> None:
    crop = CropConfig(scale=(0.4, 1.0))
    ours = windows_of(640, 426, crop, 6000)
    picture = torch.empty(3, 426, 640)
    torch.manual_seed(0)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(picture, list(crop.scale), list(crop.ratio))
            for _ in range(6000)
        ]
    )
    for column in range(4):
        spread = theirs[:, column].std()
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 0.08 * spread
        assert abs(ours[:, column].std() / spread - 1) < 0.06


def test_a_whole_square_is_kept_whole() -> None:
    windows = windows_of(96, 96, CropConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0)), 4)
    assert (windows == [0, 0, 96, 96]).all()


def test_the_centre_is_the_largest_square() -> None:
    windows = centre_windows(np.array([640, 100], np.int32), np.array([426, 301], np.int32))
    assert windows.tolist() == [[0, 107, 426, 426], [100, 0, 100, 100]]


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="scale"):
        CropConfig(scale=(0.5, 1.2))
    with pytest.raises(ValueError, match="ratio"):
        CropConfig(ratio=(2.0, 1.0))
