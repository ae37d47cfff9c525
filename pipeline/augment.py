"""Optional flips and colour changes of decoded images, before they are cut into patches.

Brightness, contrast, saturation and hue are changed as torchvision defines them, in an order that
is drawn for each image. All randomness comes in as uniform numbers, so it can be replayed.

Legend: B images, S side in pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.device_copy import upload

DRAWS_PER_IMAGE = 11
"""Uniform numbers that one image takes: flip, grey, jitter or not, four factors, four for order."""
_GREY = (0.2989, 0.587, 0.114)


def augment(images: Tensor, uniforms: NDArray[np.float64], config: AugmentConfig) -> Tensor:
    """Flip and change colours.

    Args:
        images: [B, S, S, 3] uint8, changed in place.
        uniforms: [B, DRAWS_PER_IMAGE] in [0, 1).
        config: what is done, and how often.

    Returns:
        The same tensor.
    """
    flipped = _rows(uniforms[:, 0] < config.flip, images.device)
    images[flipped] = images[flipped].flip(2)
    if max(config.jitter) > 0:
        _jitter(images, uniforms, config)
    grey = _rows(uniforms[:, 1] < config.greyscale, images.device)
    images[grey] = _grey(images[grey].float()).to(torch.uint8).expand(-1, -1, -1, 3)
    return images


def _jitter(images: Tensor, uniforms: NDArray[np.float64], config: AugmentConfig) -> None:
    strength = np.array(config.jitter)
    middle = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.maximum(middle - strength, [0.0, 0.0, 0.0, -0.5])
    factors = low + uniforms[:, 3:7] * (middle + strength - low)
    order = uniforms[:, 7:11].argsort(axis=1)
    chosen = uniforms[:, 2] < config.jitter_probability
    changes = (_brightness, _contrast, _saturation, _hue)
    for turn in range(len(changes)):
        for number, change in enumerate(changes):
            if not strength[number]:
                continue
            rows = _rows(chosen & (order[:, turn] == number), images.device)
            chosen_factors = factors[chosen & (order[:, turn] == number), number]
            factor = upload(torch.from_numpy(chosen_factors.astype(np.float32)), images.device)
            pixels = change(images[rows].float(), factor.view(-1, 1, 1, 1))
            images[rows] = pixels.clamp_(0, 255).to(torch.uint8)


def _rows(chosen: NDArray[np.bool_], device: torch.device) -> Tensor:
    return upload(torch.from_numpy(np.flatnonzero(chosen)), device)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Made once: the host would wait for each copy to a GPU."""
    return torch.tensor(values, device=device)


def _grey(pixels: Tensor) -> Tensor:
    """[B, S, S, 1] whole numbers, as torchvision rounds them: down."""
    weights = _constant(_GREY, pixels.device)
    return (pixels * weights).sum(dim=3, keepdim=True).floor_()


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return pixels * factor


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
    return pixels * factor + mean * (1 - factor)


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return pixels * factor + _grey(pixels) * (1 - factor)


def _hue(pixels: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue and keep value and chroma, each channel from its distance to the hue."""
    pixels = pixels / 255
    red, green, blue = pixels.unbind(dim=3)
    value, low = pixels.amax(dim=3), pixels.amin(dim=3)
    chroma = value - low
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue[..., None] + 6 * factor
    offset = _constant((5.0, 3.0, 1.0), pixels.device)
    place = (hue + offset).remainder(6)
    share = torch.minimum(place, 4 - place).clamp(0, 1)
    # One more than 255 times, rounded down: torchvision's way back to bytes.
    return ((value[..., None] - chroma[..., None] * share) * 255.999).floor()
