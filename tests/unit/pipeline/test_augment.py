"""Flips and colour changes against torchvision's own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from tessera.pipeline.augment import DRAWS_PER_IMAGE, augment
from tessera.pipeline.augment_config import AugmentConfig

CHANGES = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def pictures(count: int) -> Tensor:
    smooth = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    large = torch.nn.functional.interpolate(smooth, size=32, mode="bilinear")
    return (large * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def draws(count: int) -> np.ndarray:
    return np.random.default_rng(5).random((count, DRAWS_PER_IMAGE))


def by_torchvision(image: Tensor, uniforms: np.ndarray, config: AugmentConfig) -> Tensor:
    pixels = image.permute(2, 0, 1)
    if uniforms[0] < config.flip:
        pixels = functional.hflip(pixels)
    if uniforms[2] < config.jitter_probability:
        for number in np.argsort(uniforms[7:11]):
            strength = config.jitter[number]
            low = -strength if number == 3 else max(0.0, 1 - strength)
            high = strength if number == 3 else 1 + strength
            if strength:
                factor = low + uniforms[3 + number] * (high - low)
                pixels = CHANGES[number](pixels, factor)
    if uniforms[1] < config.greyscale:
        pixels = functional.rgb_to_grayscale(pixels, 3)
    return pixels.permute(1, 2, 0)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(flip=0.5),
        AugmentConfig(jitter=(0.4, 0.0, 0.0, 0.0)),
        AugmentConfig(jitter=(0.0, 0.4, 0.0, 0.0)),
        AugmentConfig(jitter=(0.0, 0.0, 0.4, 0.0)),
        AugmentConfig(jitter=(0.0, 0.0, 0.0, 0.5), jitter_probability=1.0),
        AugmentConfig(greyscale=0.5),
        AugmentConfig(flip=0.5, jitter=(0.32, 0.32, 0.32, 0.08), greyscale=0.2),
    ],
)
def test_as_torchvision(config: AugmentConfig) -> None:
    images, uniforms = pictures(24), draws(24)
    expected = torch.stack(
        [by_torchvision(*pair, config) for pair in zip(images, uniforms, strict=True)]
    )
    before = images.clone()
    found = augment(images, uniforms, config)
    distance = (found.short() - expected.short()).abs()
    # Rounded down at every step, so a last bit of float32 may tip a level, and steps add up.
    assert distance.max() <= 6
    assert distance.float().mean() < 0.2
    assert not torch.equal(found, before)
    assert config.active


def test_nothing_is_done_unless_asked_for() -> None:
    config = AugmentConfig()
    images = pictures(4)
    assert not config.active
    assert torch.equal(augment(images.clone(), draws(4), config), images)


def test_probabilities_hold() -> None:
    images, uniforms = pictures(400), draws(400)
    config = AugmentConfig(flip=0.3)
    changed = (augment(images.clone(), uniforms, config) != images).flatten(1).any(1)
    assert 0.25 < changed.float().mean() < 0.35
    assert np.array_equal(changed.numpy(), uniforms[:, 0] < 0.3)


def test_an_image_is_changed_the_same_in_any_batch() -> None:
    config = AugmentConfig(flip=0.5, jitter=(0.3, 0.3, 0.3, 0.1), greyscale=0.3)
    images, uniforms = pictures(8), draws(8)
    together = augment(images.clone(), uniforms, config)
    alone = [augment(images[i : i + 1].clone(), uniforms[i : i + 1], config) for i in range(8)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("fields", [{"flip": 1.5}, {"greyscale": -0.1}, {"jitter": (0, 0, 0, 0.6)}])
def test_senseless_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got"):
        AugmentConfig(**fields)  # pyright: ignore[reportArgumentType]
