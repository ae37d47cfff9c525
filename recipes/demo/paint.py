"""Paints one object: pigment, texture, shading and soft edges, ready to lay over a background.

Shape legend: N edge of an object's square canvas, E edge of a pattern tile.
"""

from __future__ import annotations

import colorsys
import math
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tessera.recipes.demo.objects import COLOURS, SHAPE_BY_NAME
from tessera.recipes.demo.outlines import HOLE, Part

_SUPERSAMPLING = 3
_MARGIN_PX = 4
_PATTERN_EDGE = 128
_PATTERN_PERIODS = (4.5, 6.0, 8.0, 10.5, 14.0)
_NUM_PATTERN_ANGLES = 6

RGB = tuple[float, float, float]
Grey = NDArray[np.floating]


class Palette(NamedTuple):
    """The pigments of one object, each (red, green, blue) in 0 to 255."""

    base: RGB
    """Colour that gives the object its name."""

    second: RGB
    """Colour of stripes, dots, checks and speckles."""

    dark: RGB
    """Colour of dark details such as wheels and doors."""

    light: RGB
    """Colour of light details such as windows."""


class Sprite(NamedTuple):
    """A painted object on a square canvas."""

    colour: NDArray[np.floating]
    """Colour times coverage, float32 [N, N, 3] in 0 to 255."""

    coverage: Grey
    """Share of each pixel that the object covers, float32 [N, N] in 0 to 1."""

    softened: Grey
    """Coverage, blurred: what the object's shadow is made of, float32 [N, N] in 0 to 1."""


def _mix(a: RGB, b: RGB, share_b: float) -> RGB:
    return (
        a[0] + (b[0] - a[0]) * share_b,
        a[1] + (b[1] - a[1]) * share_b,
        a[2] + (b[2] - a[2]) * share_b,
    )


_WHITE: RGB = (250, 250, 248)
_BLACK: RGB = (8, 8, 10)
# Darkened, these would be called by another name.
_PALE_SECOND_ONLY = ("orange", "brown", "black", "red", "yellow")


def mix_palette(rng: Random, colour: str, *, is_thin: bool = False) -> Palette:
    """Draws the pigments of one object.

    Args:
        rng: Generator of the sample.
        colour: One of `objects.COLOURS`.
        is_thin: Keeps the second colour near the first, so that stripes do not cut narrow
            bars into pieces.

    Returns:
        The pigments.
    """
    spec = COLOURS[colour]
    hsv = [rng.uniform(*span) for span in (spec.hue, spec.saturation, spec.value)]
    red, green, blue = colorsys.hsv_to_rgb(hsv[0] % 1.0, hsv[1], hsv[2])
    base = (255 * red, 255 * green, 255 * blue)
    if colour == "white":
        grey = _mix(base, _BLACK, rng.uniform(0.42, 0.55))
        return Palette(base, grey, _mix(base, _BLACK, 0.5), _mix(base, _BLACK, 0.22))
    deep = colour not in _PALE_SECOND_ONLY and rng.random() < 0.4
    if is_thin:
        second = (
            _mix(base, _WHITE, 0.5) if colour in ("black", "brown") else _mix(base, _BLACK, 0.5)
        )
    else:
        second = _mix(base, _BLACK, 0.55) if deep else _mix(base, _WHITE, rng.uniform(0.78, 0.9))
    if colour == "black":
        return Palette(base, second, _mix(base, _WHITE, 0.28), _mix(base, _WHITE, 0.6))
    return Palette(base, second, _mix(base, _BLACK, 0.5), _mix(base, _WHITE, 0.7))


def _soft_step(values: NDArray[np.float64], threshold: float, period: float) -> Image.Image:
    """1 where values exceed the threshold, with an edge about one pixel wide."""
    slope = period / 5.0
    return Image.fromarray(
        (np.clip((values - threshold) * slope + 0.5, 0, 1) * 255).astype(np.uint8)
    )


def _pattern(texture: str, period: float, angle_deg: float) -> Image.Image:
    y, x = np.mgrid[0:_PATTERN_EDGE, 0:_PATTERN_EDGE].astype(np.float64)
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    u, v = (c * x + s * y) * 2 * math.pi / period, (c * y - s * x) * 2 * math.pi / period
    if texture == "striped":
        return _soft_step(np.sin(u), 0.1, period)
    if texture == "checkered":
        return _soft_step(np.sin(u / 1.4) * np.sin(v / 1.4), 0.0, period * 1.4)
    if texture == "dotted":
        return _soft_step(np.cos(u / 1.15) + np.cos(v / 1.15), 0.75, period)
    # Speckles: irregular flecks a third of a period wide.
    seed = int(period * 10 + angle_deg)
    grains = np.random.default_rng(seed).standard_normal((_PATTERN_EDGE, _PATTERN_EDGE))
    flecks = Image.fromarray(np.clip(128 + 60 * grains, 0, 255).astype(np.uint8))
    blurred = np.asarray(flecks.filter(ImageFilter.GaussianBlur(0.085 * period + 0.25)), np.float64)
    return _soft_step((blurred - blurred.mean()) / blurred.std(), 0.75, 6.0)


@lru_cache(maxsize=1)
def patterns() -> dict[tuple[str, float], list[Image.Image]]:
    """Pattern tiles, mode L, E by E, by texture and period in pixels, at several angles."""
    step = 180.0 / _NUM_PATTERN_ANGLES
    return {
        (texture, period): [
            _pattern(texture, period, 7.0 + step * k) for k in range(_NUM_PATTERN_ANGLES)
        ]
        for texture in ("striped", "dotted", "checkered", "speckled")
        for period in _PATTERN_PERIODS
    }


def _texture_share(rng: Random, texture: str, edge: int, size_px: float) -> Grey:
    """Share of the second colour at each pixel, float32 [N, N]."""
    period = min(_PATTERN_PERIODS, key=lambda p: abs(p - 0.19 * size_px))
    tile = rng.choice(patterns()[texture, period])
    left, top = rng.randrange(_PATTERN_EDGE - edge), rng.randrange(_PATTERN_EDGE - edge)
    return np.asarray(tile.crop((left, top, left + edge, top + edge)), np.float32) * (1 / 255)


def _draw_tones(rng: Random, shape: str, size_px: float) -> Image.Image:
    """The object's tones, one per channel, longer side `size_px`, on an N by N canvas."""
    spec = SHAPE_BY_NAME[shape]
    parts: list[Part] = spec.draw(rng)
    angle = math.radians(rng.uniform(-spec.max_turn_deg, spec.max_turn_deg))
    squeeze, flip = rng.uniform(0.9, 1.1), rng.choice((-1.0, 1.0))
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c * squeeze * flip, s * squeeze * flip], [-s, c]])
    corners = np.concatenate([part.points for part in parts]) @ turn
    is_drawn = np.repeat([p.tone != HOLE for p in parts], [len(p.points) for p in parts])
    low, high = corners[is_drawn].min(axis=0), corners[is_drawn].max(axis=0)
    edge = math.ceil(size_px) + 2 * _MARGIN_PX
    scale = size_px * _SUPERSAMPLING / float((high - low).max())
    placed = (corners - (low + high) / 2) * scale + edge * _SUPERSAMPLING / 2
    canvas = Image.new("RGB", (edge * _SUPERSAMPLING, edge * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    start = 0
    for part in parts:
        stop = start + len(part.points)
        draw.polygon(placed[start:stop].ravel().tolist(), fill=part.tone)
        start = stop
    return canvas.reduce(_SUPERSAMPLING)


def _light(rng: Random, edge: int, strength: float) -> Grey:
    """Brightness across the object, lit from above at a random slant, float32 [N, N]."""
    slant = rng.uniform(-0.8, 0.8)
    t = np.linspace(1, -1, edge, dtype=np.float32)
    return (1 + strength * 0.7) * (1 + strength * (t[:, None] + slant * t[None, :]) * 0.6)


def paint_object(rng: Random, shape: str, palette: Palette, texture: str, size_px: float) -> Sprite:
    """Paints one object.

    Args:
        rng: Generator of the sample.
        shape: Name of its class.
        palette: Its pigments.
        texture: One of `objects.TEXTURES`.
        size_px: Length of the longer side of its bounding box in pixels.

    Returns:
        The object in the middle of a square canvas with a small margin.
    """
    tones_image = _draw_tones(rng, shape, size_px)
    tones = np.asarray(tones_image, np.float32) * (1 / 255)
    edge = tones.shape[0]
    coverage = np.minimum(tones.sum(axis=2), 1.0)
    mask = Image.fromarray((coverage * 255).astype(np.uint8))
    softened = np.asarray(mask.filter(ImageFilter.BoxBlur(2)), np.float32) * (1 / 255)

    fill = tones[:, :, 0]
    if texture == "plain":
        second = np.zeros_like(fill)
    else:
        second = fill * _texture_share(rng, texture, edge, size_px)
    weights = np.stack([fill - second, second, tones[:, :, 1], tones[:, :, 2]], axis=2)
    colour = weights @ np.asarray(palette, np.float32)
    # The rim is darker: the eye reads a solid thing, and the outline parts it from any background.
    rim = 0.72 + 0.28 * np.minimum(softened * 1.25, 1.0)
    colour *= (_light(rng, edge, rng.uniform(0.04, 0.16)) * rim)[:, :, None]
    return Sprite(colour, coverage, softened)
