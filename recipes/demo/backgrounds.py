"""Backgrounds that look like photographed surfaces: noise with many octaves, mapped to colours.

Grey noise tiles are made once per process; a background is a crop of a tile, seen in perspective
where the surface recedes, coloured by a jittered palette and lit from one side.

Shape legend: H, W height and width of the picture; E edge of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.floating]
Grey = NDArray[np.floating]
RGB = tuple[float, float, float]

_EDGE = 512

# Anchors of each palette, dark to bright, spread evenly over the grey values of the tile.
_PALETTES: dict[str, tuple[RGB, ...]] = {
    "grass": ((28, 52, 14), (62, 98, 30), (98, 134, 46), (150, 172, 82)),
    "sand": ((150, 122, 84), (192, 164, 120), (214, 190, 148), (234, 216, 182)),
    "water": ((14, 52, 74), (30, 86, 108), (66, 128, 146), (176, 210, 214)),
    "wood": ((72, 44, 24), (124, 82, 48), (158, 112, 70), (184, 140, 94)),
    "brick": ((176, 168, 156), (122, 58, 44), (150, 74, 54), (178, 98, 74)),
    "snow": ((176, 190, 210), (206, 216, 230), (228, 234, 242), (248, 250, 252)),
}


def _spectrum(stretch_x: float, stretch_y: float, slope: float) -> NDArray[np.float64]:
    fy = np.fft.fftfreq(_EDGE)[:, None] * _EDGE * stretch_y
    fx = np.fft.rfftfreq(_EDGE)[None, :] * _EDGE * stretch_x
    frequency = np.hypot(fx, fy)
    frequency[0, 0] = np.inf
    return frequency**-slope


def _noise(seed: int, slope: float, stretch_x: float = 1.0, stretch_y: float = 1.0) -> Grey:
    """Fractal noise, seamless, mean 0, deviation 1, float32 [E, E].

    Amplitude falls as 1 / f**slope; a larger stretch draws the features out along that axis.
    """
    white = np.random.default_rng(seed).standard_normal((_EDGE, _EDGE))
    shaped = np.fft.irfft2(np.fft.rfft2(white) * _spectrum(stretch_x, stretch_y, slope))
    return ((shaped - shaped.mean()) / shaped.std()).astype(np.float32)


def _bricks(seed: int) -> Grey:
    """Running bond: mortar near 0, every brick its own shade, float32 [E, E] in 0 to 1."""
    length, height, joint = 32, 16, 2
    y, x = np.mgrid[0:_EDGE, 0:_EDGE]
    course = y // height
    x = x + (course % 2) * (length // 2)
    shades = np.random.default_rng(seed).uniform(0.5, 0.85, (64, 64))
    wall = shades[course % 64, x // length % 64] + 0.06 * _noise(seed + 1, 0.6)
    is_mortar = (y % height < joint) | (x % length < joint)
    return np.where(is_mortar, 0.06 + 0.03 * _noise(seed + 2, 0.5), wall).astype(np.float32)


def _planks(seed: int) -> Grey:
    """Boards along x with grain and dark seams, float32 [E, E] in 0 to 1."""
    width = 32
    grain = 0.55 * _noise(seed, 1.2, 8.0, 1.0) + 0.45 * _noise(seed + 1, 0.7, 12.0, 1.0)
    board = np.arange(_EDGE) // width
    shade = np.random.default_rng(seed + 2).uniform(-0.7, 0.7, board.max() + 1)[board]
    # Every board is cut from another place, so the grain breaks at the seams.
    rows = [np.roll(row, int(97 * b) % _EDGE) for row, b in zip(grain, board, strict=True)]
    wood = 0.58 + 0.15 * (np.stack(rows) + shade[:, None])
    wood[np.arange(_EDGE) % width < 2] *= 0.3
    return wood.astype(np.float32)


def _stars(seed: int) -> Grey:
    """Sparse points of unequal brightness, float32 [E, E] in 0 to 1."""
    rng = np.random.default_rng(seed)
    sky = np.zeros((_EDGE, _EDGE), np.float32)
    y, x = rng.integers(1, _EDGE - 1, (2, 1100))
    light = (0.25 + 0.75 * rng.random(1100) ** 2).astype(np.float32)
    sky[y, x] = light
    for dy, dx in ((0, 1), (1, 0)):
        np.maximum.at(sky, (y + dy, x + dx), light * 0.45)
    return sky


def _tile(grey: Grey) -> Image.Image:
    return Image.fromarray(np.clip(grey * 255, 0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def tiles() -> dict[str, Image.Image]:
    """The grey tiles of all surfaces, mode L, E by E, made on the first call."""
    ripples = 0.7 * _noise(31, 1.7, 4.5, 1.0) + 0.5 * _noise(32, 1.1, 3.5, 1.0)
    grey = {
        "grass": 0.5 + 0.14 * _noise(11, 0.35, 1.0, 3.0) + 0.07 * _noise(12, 1.6),
        "sand": 0.55 + 0.09 * _noise(21, 0.15) + 0.12 * _noise(22, 1.6, 2.0, 1.0),
        "water": 0.4 + 0.19 * ripples,
        "wood": _planks(41),
        "brick": _bricks(51),
        "snow": 0.66 + 0.17 * _noise(61, 1.7, 1.5, 1.0) + 0.04 * _noise(62, 0.3),
        "clouds": 0.5 + 0.22 * _noise(71, 1.65, 1.4, 1.0),
        "stars": _stars(81),
    }
    return {name: _tile(array) for name, array in grey.items()}


def _crop(rng: Random, tile: Image.Image, size: tuple[int, int], scale: float) -> Image.Image:
    """A random part of the tile at `scale` tile pixels per picture pixel, size (W, H)."""
    width, height = size[0] * scale, size[1] * scale
    left, top = rng.uniform(0, _EDGE - width), rng.uniform(0, _EDGE - height)
    box = (left, top, left + width, top + height)
    return tile.resize(size, Image.Resampling.BILINEAR, box=box)


def _receding(
    rng: Random, tile: Image.Image, size: tuple[int, int], far: float, near: float
) -> Image.Image:
    """The tile as ground seen at a slant, size (W, H).

    `far` and `near` are tile pixels per picture pixel at the upper and the lower edge.
    """
    w, h = size
    ratio = far / near - 1
    cx = rng.uniform(far * w / 2, _EDGE - far * w / 2)
    cy = rng.uniform(far * h, _EDGE - 1)
    row_x, row_y = cx * ratio / h, cy * ratio / h + far
    data = (far, row_x, cx - far * w / 2, 0.0, row_y, cy - far * h, 0.0, ratio / h)
    return tile.transform(size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR)


def _palette(rng: Random, anchors: Sequence[RGB], jitter: float) -> Pixels:
    """Colours of the 256 grey values, all anchors shifted by one random tint, [256, 3]."""
    tint = [rng.uniform(-jitter, jitter) for _ in range(3)]
    stops = np.linspace(0, 255, len(anchors))
    table = [np.interp(np.arange(256), stops, [a[c] + tint[c] for a in anchors]) for c in range(3)]
    return np.stack(table, axis=1).astype(np.float32)


def _coloured(grey: Image.Image, palette: Pixels) -> Pixels:
    return np.take(palette, np.asarray(grey), axis=0)


def _gradient(top: RGB, bottom: RGB, height: int) -> Pixels:
    """Vertical blend of two colours, [H, 1, 3]."""
    t = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    return np.asarray(top, np.float32) * (1 - t) + np.asarray(bottom, np.float32) * t


def _sky(rng: Random, size: tuple[int, int]) -> Pixels:
    pale = rng.uniform(-12, 24)
    top = (82 + pale + rng.uniform(-8, 8), 144 + pale, 214 + pale / 2)
    blue = _gradient(top, (176 + rng.uniform(-12, 8), 206, 232), size[1])
    clouds = np.asarray(_crop(rng, tiles()["clouds"], size, rng.uniform(1.2, 2.6)), np.float32)
    # Measured in deviations of this very crop, so that no sky is without clouds or blue.
    spread = clouds.std() + 1.0
    edge = clouds.mean() + rng.uniform(-0.1, 0.8) * spread
    alpha = np.clip((clouds - edge) / (1.4 * spread), 0, 0.92)[:, :, None]
    # Thick cloud is grey below: brightness falls a little where the noise is highest.
    white = (256 - 0.16 * clouds)[:, :, None]
    return blue + alpha * (white - blue)


def _night(rng: Random, size: tuple[int, int]) -> Pixels:
    glow = rng.uniform(0, 22)
    dark = _gradient((8, 10, 28), (22 + glow, 26 + glow, 56 + glow), size[1])
    stars = np.asarray(_crop(rng, tiles()["stars"], size, rng.uniform(0.9, 1.3)), np.float32)
    haze = np.asarray(_crop(rng, tiles()["clouds"], size, 2.0), np.float32) - 110
    return dark + 0.8 * stars[:, :, None] + 0.12 * np.maximum(haze, 0)[:, :, None]


def _ground(rng: Random, kind: str, size: tuple[int, int]) -> Pixels:
    near, far = {
        "grass": (0.8, 2.2),
        "sand": (0.8, 2.0),
        "water": (0.7, 2.4),
        "snow": (0.8, 2.0),
    }[kind]
    stretch = rng.uniform(0.8, 1.2)
    ground = _receding(rng, tiles()[kind], size, far * stretch, near * stretch)
    return _coloured(ground, _palette(rng, _PALETTES[kind], 4.0 if kind == "snow" else 10.0))


def _flat(rng: Random, kind: str, size: tuple[int, int]) -> Pixels:
    tile = tiles()[kind]
    if kind == "wood" and rng.random() < 0.4:
        tile = tile.transpose(Image.Transpose.ROTATE_90)
    surface = _crop(rng, tile, size, rng.uniform(0.85, 1.35))
    return _coloured(surface, _palette(rng, _PALETTES[kind], 8.0))


def _with_horizon(rng: Random, ground: Pixels) -> Pixels:
    """Replaces the uppermost strip by hazy sky and lightens the distance below it."""
    height = ground.shape[0]
    line = int(height * rng.uniform(0.1, 0.2))
    haze = np.asarray((196 + rng.uniform(-20, 10), 208, 220 + rng.uniform(-6, 12)), np.float32)
    fade = np.exp(-np.arange(height - line, dtype=np.float32) / (0.12 * height))[:, None, None]
    ground[line:] += 0.55 * fade * (haze - ground[line:])
    ground[:line] = haze
    return ground


def paint_background(rng: Random, kind: str, size: tuple[int, int]) -> Pixels:
    """One background.

    Args:
        rng: Generator of the sample.
        kind: One of `objects.BACKGROUNDS`.
        size: (W, H) in pixels.

    Returns:
        float32 [H, W, 3], roughly 0 to 255, not yet clipped.
    """
    if kind == "sky":
        return _sky(rng, size)
    if kind == "night":
        return _night(rng, size)
    if kind in ("wood", "brick"):
        return _flat(rng, kind, size)
    ground = _ground(rng, kind, size)
    return _with_horizon(rng, ground) if rng.random() < 0.35 else ground
