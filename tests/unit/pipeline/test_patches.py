"""Patches are cut, put back and normalised as documented."""

import pytest
import torch

from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD, normalise, patchify, unpatchify


def test_patches_are_row_major_and_hold_y_x_channel() -> None:
    images = torch.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                tile = images[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert (patches[image, row * 3 + column] == tile.reshape(-1)).all()


def test_unpatchify_undoes_patchify() -> None:
    images = torch.randint(0, 256, (3, 32, 48, 3), dtype=torch.uint8)
    assert (unpatchify(patchify(images, 16), (2, 3)) == images).all()


def test_pixels_are_normalised_by_channel() -> None:
    patches = torch.randint(0, 256, (2, 5, 12), dtype=torch.uint8)
    pixels = patches.reshape(2, 5, 4, 3).double() / 255
    expected = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(normalise(patches).double(), expected.reshape(2, 5, 12), atol=1e-6)


def test_constants_are_those_of_open_clip_and_of_the_model() -> None:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    assert tuple(OPENAI_DATASET_MEAN) == CLIP_MEAN
    assert tuple(OPENAI_DATASET_STD) == CLIP_STD


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="16-pixel"):
        patchify(torch.zeros(1, 20, 32, 3), 16)
