"""Turns a scene into a JPEG: layout, background, objects, and the traces of a camera.

Shape legend: H, W height and width of the picture.
"""

from __future__ import annotations

import io
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tessera.recipes.demo.backgrounds import Pixels, paint_background
from tessera.recipes.demo.objects import SHAPE_BY_NAME
from tessera.recipes.demo.paint import Sprite, mix_palette, paint_object
from tessera.recipes.demo.scenes import Scene

_NOISE_EDGE = 384

# Longer side of an object as a share of the picture's short side, by how many objects there are.
_SIZES: dict[int, dict[str, tuple[float, float]]] = {
    1: {"small": (0.32, 0.38), "medium": (0.46, 0.54), "large": (0.62, 0.74)},
    2: {"small": (0.27, 0.31), "medium": (0.35, 0.38), "large": (0.42, 0.46)},
    3: {"small": (0.25, 0.28), "medium": (0.32, 0.34), "large": (0.39, 0.43)},
    4: {"small": (0.25, 0.28), "medium": (0.32, 0.34), "large": (0.39, 0.43)},
}
_LOW, _MID, _HIGH = 0.26, 0.5, 0.74
_ROWS = {
    2: (
        ((_LOW, _MID), (_HIGH, _MID)),
        ((_MID, _LOW), (_MID, _HIGH)),
        ((_LOW, _LOW), (_HIGH, _HIGH)),
        ((_LOW, _HIGH), (_HIGH, _LOW)),
    ),
    3: (
        ((_MID, _LOW), (_LOW, _HIGH), (_HIGH, _HIGH)),
        ((_MID, _HIGH), (_LOW, _LOW), (_HIGH, _LOW)),
    ),
    4: (((_LOW, _LOW), (_HIGH, _LOW), (_LOW, _HIGH), (_HIGH, _HIGH)),),
}
_PLACES = {
    "left": (0.2, _MID),
    "right": (0.8, _MID),
    "top": (_MID, 0.2),
    "bottom": (_MID, 0.8),
    "middle": (_MID, _MID),
}
_PAIRS = {
    "left of": ((_LOW, _MID), (_HIGH, _MID)),
    "right of": ((_HIGH, _MID), (_LOW, _MID)),
    "above": ((_MID, _LOW), (_MID, _HIGH)),
    "below": ((_MID, _HIGH), (_MID, _LOW)),
}


class Spot(NamedTuple):
    """Where one object goes, within the central square of the picture."""

    thing: int
    """Which thing of the scene it is."""

    x: float
    """Centre, 0 at the left edge of the square, 1 at the right."""

    y: float
    """Centre, 0 at the upper edge of the square, 1 at the lower."""

    size: float
    """Longer side as a share of the square's side."""


def lay_out(rng: Random, scene: Scene) -> list[Spot]:
    """Places every object of the scene, in painting order, inside the central square."""
    if scene.relation == "in front of":
        return _overlapping(rng)
    if scene.relation is not None:
        centres = _PAIRS[scene.relation]
        sizes = [rng.uniform(*_SIZES[2][thing.size]) for thing in scene.things]
        return [_nudged(rng, k, centres[k], sizes[k]) for k in (0, 1)]
    thing = scene.things[0]
    size = rng.uniform(*_SIZES[thing.count][thing.size])
    if thing.count > 1:
        return [_nudged(rng, 0, centre, size) for centre in rng.choice(_ROWS[thing.count])]
    if scene.place is not None:
        x, y = _PLACES[scene.place]
        return [Spot(0, x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02), size)]
    room = (1 - size) * 0.3
    return [Spot(0, _MID + rng.uniform(-room, room), _MID + rng.uniform(-room, room), size)]


def _nudged(rng: Random, thing: int, centre: tuple[float, float], size: float) -> Spot:
    # Half of the gap that is left in the object's cell, so neighbours never touch.
    room = max(0.0, 0.23 - size / 2) * 0.9
    x, y = (c + rng.uniform(-room, room) for c in centre)
    return Spot(thing, x, y, size * rng.uniform(0.97, 1.0))


def _overlapping(rng: Random) -> list[Spot]:
    back = rng.uniform(0.62, 0.7)
    front = rng.uniform(0.3, 0.35)
    dx, dy = rng.choice((-1, 1)) * rng.uniform(0.15, 0.22), rng.uniform(0.14, 0.22)
    x, y = _MID - dx / 3, _MID - dy / 3
    return [Spot(1, x, y, back), Spot(0, x + dx, y + dy, front)]


def _canvas_size(rng: Random) -> tuple[int, int]:
    short = rng.randint(80, 112)
    long = round(short * rng.choice((1.0, 1.0, 4 / 3, 5 / 4, rng.uniform(1.0, 1.4))))
    return (short, long) if rng.random() < 0.4 else (long, short)


def _lay_over(canvas: Pixels, sprite: Sprite, left: int, top: int, shadow: float) -> None:
    """Lays a sprite and its shadow, one pixel down and right, over the canvas, in place."""
    edge = sprite.coverage.shape[0]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + edge, canvas.shape[0] - 2), min(left + edge, canvas.shape[1] - 2)
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    canvas[y0 + 2 : y1 + 2, x0 + 1 : x1 + 1] *= 1 - shadow * sprite.softened[inner][:, :, None]
    target = canvas[y0:y1, x0:x1]
    target *= 1 - sprite.coverage[inner][:, :, None]
    target += sprite.colour[inner]


@lru_cache(maxsize=1)
def sensor_noise() -> NDArray[np.floating]:
    """Noise tile with mean 0 and deviation 1, mostly luminance, float32 [384, 384, 3]."""
    rng = np.random.default_rng(91)
    luminance = rng.standard_normal((_NOISE_EDGE, _NOISE_EDGE, 1), np.float32)
    chroma = rng.standard_normal((_NOISE_EDGE, _NOISE_EDGE, 3), np.float32)
    return 0.85 * luminance + 0.5 * chroma


def _photograph(rng: Random, canvas: Pixels) -> Image.Image:
    """Defocus, exposure, white balance, uneven light, vignette and sensor noise."""
    image = Image.fromarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8))
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.15, 0.65)))
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope_y, slope_x = rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)
    gain = 1 + slope_y * y + slope_x * x - rng.uniform(0, 0.12) * (y * y + x * x)
    exposure = rng.uniform(0.86, 1.12)
    balance = np.array([exposure * rng.uniform(0.96, 1.04) for _ in range(3)], np.float32)
    pixels = pixels * (gain[:, :, None] * balance)
    top, left = rng.randrange(_NOISE_EDGE - height), rng.randrange(_NOISE_EDGE - width)
    grain = sensor_noise()[top : top + height, left : left + width]
    pixels += rng.uniform(1.5, 6.0) * grain
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def paint_scene(rng: Random, scene: Scene) -> Image.Image:
    """Paints a scene as a photograph would show it.

    Args:
        rng: Generator of the sample.
        scene: What to show.

    Returns:
        RGB picture, short side 80 to 112 pixels, long side at most 1.4 times that.
    """
    width, height = _canvas_size(rng)
    canvas = paint_background(rng, scene.background, (width, height))
    square = min(width, height)
    offset_x, offset_y = (width - square) / 2, (height - square) / 2
    palettes = [
        mix_palette(rng, thing.colour, is_thin=SHAPE_BY_NAME[thing.shape].is_thin)
        for thing in scene.things
    ]
    shadow = rng.uniform(0.15, 0.45)
    for spot in lay_out(rng, scene):
        thing = scene.things[spot.thing]
        sprite = paint_object(
            rng, thing.shape, palettes[spot.thing], thing.texture, spot.size * square
        )
        half = sprite.coverage.shape[0] / 2
        left = round(offset_x + spot.x * square - half)
        top = round(offset_y + spot.y * square - half)
        _lay_over(canvas, sprite, left, top, shadow)
    return _photograph(rng, canvas)


def encode_jpeg(rng: Random, image: Image.Image) -> bytes:
    """JPEG bytes at a random quality from 70 to 95, chroma subsampled in most pictures."""
    buffer = io.BytesIO()
    subsampling = rng.choice(("4:2:0", "4:2:0", "4:4:4"))
    image.save(buffer, "JPEG", quality=rng.randint(70, 95), subsampling=subsampling)
    return buffer.getvalue()
