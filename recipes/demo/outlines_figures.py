"""Outlines of the plain figures: signs, symbols and things of nature.

Every function draws one object with its own small variations and returns its parts in drawing
order; see `outlines` for the coordinates.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np

from tessera.recipes.demo.outlines import (
    DARK,
    FILL,
    HOLE,
    LIGHT,
    Part,
    arc,
    disc,
    mirrored,
    polygon,
    rectangle,
    smooth,
    stroke,
    turned,
)


def star(rng: Random) -> list[Part]:
    """Five points around a small core."""
    inner = rng.uniform(0.38, 0.48)
    angles = np.radians(np.arange(10) * 36.0 - 90.0)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    return [Part(FILL, np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1))]


def heart(rng: Random) -> list[Part]:
    """Two lobes over a point (the usual sin-cubed curve)."""
    t = np.linspace(0.0, 2 * math.pi, 40)
    x = 16 * np.sin(t) ** 3 * rng.uniform(0.95, 1.1)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [Part(FILL, np.stack([x, y], axis=1) / 17)]


def crescent_moon(rng: Random) -> list[Part]:
    """A disc less a second disc that is pushed to the right."""
    shift, radius = rng.uniform(0.42, 0.5), rng.uniform(0.74, 0.8)
    horn = math.degrees(math.acos((1 + shift**2 - radius**2) / (2 * shift)))
    dx = math.cos(math.radians(horn)) - shift
    inner_horn = math.degrees(math.atan2(math.sin(math.radians(horn)), dx))
    outer = arc((0, 0), (1, 1), horn, 360 - horn, 30)
    inner = arc((shift, 0), (radius, radius), 360 - inner_horn, inner_horn, 26)
    return [Part(FILL, np.concatenate([outer, inner]))]


def arrow(rng: Random) -> list[Part]:
    """A shaft with a broad head."""
    half, head, neck = rng.uniform(0.16, 0.24), rng.uniform(0.5, 0.65), rng.uniform(0.05, 0.25)
    corners = [(-1, -half), (neck, -half), (neck, -head), (1, 0)]
    return [Part(FILL, polygon(*corners, *((x, -y) for x, y in reversed(corners[:3]))))]


def cross(rng: Random) -> list[Part]:
    """An upright cross with four equal arms."""
    w = rng.uniform(0.26, 0.36)
    quarter = [(w, -1), (w, -w), (1, -w)]
    corners = [quarter]
    for _ in range(3):
        corners.append([(-y, x) for x, y in corners[-1]])
    return [Part(FILL, polygon(*(corner for side in corners for corner in side)))]


def ring(rng: Random) -> list[Part]:
    """A disc with a round hole that shows what lies behind."""
    return [
        Part(FILL, arc((0, 0), (1, 1), num_points=36)),
        Part(HOLE, disc((0, 0), rng.uniform(0.52, 0.64))),
    ]


def triangle(rng: Random) -> list[Part]:
    """Three corners, near equilateral."""
    return [Part(FILL, polygon((rng.uniform(-0.12, 0.12), -0.87), (1, 0.87), (-1, 0.87)))]


def square(rng: Random) -> list[Part]:
    """Four equal sides."""
    half = rng.uniform(0.97, 1.03)
    return [Part(FILL, rectangle(-half, -1, half, 1))]


def hexagon(rng: Random) -> list[Part]:
    """Six equal sides."""
    return [Part(FILL, turned(arc((0, 0), (1, 1), 0, 300, 6), rng.uniform(-6, 6)))]


def tree(rng: Random) -> list[Part]:
    """A fir: three tiers over a trunk."""
    spread, trunk = rng.uniform(0.6, 0.75), rng.uniform(0.1, 0.16)
    parts = [Part(DARK, rectangle(-trunk, 0.5, trunk, 1))]
    for top, bottom, width in ((-0.25, 0.68, 1.0), (-0.62, 0.22, 0.8), (-1.0, -0.25, 0.58)):
        half = spread * width
        parts.append(Part(FILL, polygon((0, top), (half, bottom), (-half, bottom))))
    return parts


def fish(rng: Random) -> list[Part]:
    """A long body, a forked tail, a fin and an eye."""
    depth, tail = rng.uniform(0.42, 0.52), rng.uniform(0.4, 0.5)
    return [
        Part(FILL, polygon((-0.4, 0), (-1, -tail), (-0.82, 0), (-1, tail))),
        Part(
            FILL,
            smooth((-0.62, 0), (0.1, -depth), (0.72, -0.24), (1, 0), (0.72, 0.24), (0.1, depth)),
        ),
        Part(DARK, polygon((0.15, 0.05), (-0.2, 0.3), (-0.22, -0.08))),
        Part(LIGHT, disc((0.66, -0.1), 0.13)),
        Part(DARK, disc((0.69, -0.1), 0.06)),
    ]


def flower(rng: Random) -> list[Part]:
    """Five to seven round petals about a pale heart."""
    num_petals = rng.choice((5, 6, 7))
    petal = arc((0.62, 0), (0.4, 1.62 / num_petals), num_points=18)
    parts = [Part(FILL, turned(petal, 360 / num_petals * k)) for k in range(num_petals)]
    return [*parts, Part(LIGHT, disc((0, 0), 0.27)), Part(DARK, disc((0, 0), 0.1))]


def leaf(rng: Random) -> list[Part]:
    """A pointed blade with a stalk and veins."""
    width = rng.uniform(0.46, 0.58)
    t = np.linspace(0, 1, 16)
    right = np.stack([width * np.sin(math.pi * t**0.85) ** 0.9, 1.66 * t - 1], axis=1)
    parts = [Part(FILL, np.concatenate([right, mirrored(right)[::-1]]))]
    parts.append(Part(DARK, stroke((0, -0.8), (0, 1), 0.07)))
    for y in (-0.35, -0.02, 0.3):
        tip = width * 0.62
        parts.append(Part(DARK, stroke((0, y + 0.05), (tip, y - 0.2), 0.045)))
        parts.append(Part(DARK, stroke((0, y + 0.05), (-tip, y - 0.2), 0.045)))
    return parts


def mushroom(rng: Random) -> list[Part]:
    """A domed cap over a pale stem."""
    stem, cap = rng.uniform(0.2, 0.3), rng.uniform(0.85, 1.0)
    foot = polygon((-stem, -0.1), (stem, -0.1), (stem * 1.35, 0.95), (-stem * 1.35, 0.95))
    dome = arc((0, 0), (1.0, cap), 180, 360, 26)
    under = arc((0, 0), (1.0, 0.18), 0, 180, 14)
    return [
        Part(LIGHT, foot),
        Part(DARK, under),
        Part(FILL, np.concatenate([dome, under * (1, 0.4)])),
    ]


def butterfly(rng: Random) -> list[Part]:
    """Two pairs of wings, a thin body and feelers."""
    reach = rng.uniform(0.62, 0.82)
    upper = smooth(
        (0.04, -0.05), (0.35, -0.62), (0.85, -reach), (1, -0.42), (0.72, 0.02), (0.3, 0.1)
    )
    lower = smooth((0.04, 0.0), (0.4, 0.08), (0.74, 0.3), (0.64, 0.74), (0.34, 0.72), (0.1, 0.35))
    wings = [Part(FILL, side) for wing in (upper, lower) for side in (wing, mirrored(wing))]
    feeler = stroke((0.03, -0.45), (0.26, -0.86), 0.05)
    body = arc((0, 0.05), (0.08, 0.56), num_points=16)
    return [*wings, *(Part(DARK, p) for p in (body, feeler, mirrored(feeler)))]


def cloud(rng: Random) -> list[Part]:
    """Puffs of unequal size over a flat foot."""
    high = rng.uniform(0.38, 0.46)
    return [
        Part(FILL, disc((-0.62, 0.18), 0.36)),
        Part(FILL, disc((-0.18, -0.1), high)),
        Part(FILL, disc((0.32, -0.02), high * 0.9)),
        Part(FILL, disc((0.68, 0.22), 0.32)),
        Part(FILL, rectangle(-0.62, 0.1, 0.68, 0.54)),
    ]


def lightning_bolt(rng: Random) -> list[Part]:
    """A zigzag from a broad top to a sharp end."""
    kink = rng.uniform(-0.06, 0.06)
    corners = ((-0.05, -1), (0.5, -1), (0.18, -0.3 + kink), (0.6, -0.3 + kink))
    tail = ((-0.38, 1), (-0.08, 0.12 + kink), (-0.52, 0.12 + kink))
    return [Part(FILL, polygon(*corners, *tail))]


def apple(rng: Random) -> list[Part]:
    """A round fruit, dented above, with stalk and leaf."""
    hip = rng.uniform(0.82, 0.92)
    right = ((0.22, -0.62), (0.62, -0.64), (hip, -0.2), (0.72, 0.45), (0.32, 0.84))
    left = tuple((-x, y) for x, y in reversed(right))
    blade = smooth((0.04, -0.66), (0.26, -0.98), (0.62, -1.0), (0.36, -0.7))
    return [
        Part(FILL, smooth((0, -0.46), *right, (0, 0.76), *left)),
        Part(DARK, stroke((0, -0.44), (-0.06, -0.98), 0.1)),
        Part(DARK, blade),
    ]


def cactus(rng: Random) -> list[Part]:
    """A tall rounded stem with two raised arms and ribs."""
    low, high, half = rng.uniform(0.15, 0.35), rng.uniform(-0.15, 0.1), rng.uniform(0.22, 0.28)
    parts = [
        Part(FILL, arc((0, -0.72), (half, 0.28))),
        Part(FILL, rectangle(-half, -0.72, half, 1)),
    ]
    for side, elbow, top in ((-1, low, -0.3), (1, high, -0.55)):
        x = 0.62 * side
        parts.append(Part(FILL, rectangle(min(0, x), elbow - 0.14, max(0, x), elbow + 0.14)))
        parts.append(Part(FILL, rectangle(x - 0.14, top, x + 0.14, elbow)))
        parts += [Part(FILL, disc((x, y), 0.14)) for y in (top, elbow)]
    parts += [Part(DARK, stroke((x, -0.7), (x, 0.95), 0.05)) for x in (-0.09, 0.09)]
    return parts
