"""Outlines of made things: buildings, vessels, tools, clothes.

Every function draws one object with its own small variations and returns its parts in drawing
order; see `outlines` for the coordinates.
"""

from __future__ import annotations

from random import Random

import numpy as np

from tessera.recipes.demo.outlines import (
    DARK,
    FILL,
    HOLE,
    LIGHT,
    Part,
    arc,
    band,
    disc,
    mirrored,
    polygon,
    rectangle,
    smooth,
    stroke,
)


def house(rng: Random) -> list[Part]:
    """Walls, a gabled roof, a chimney, a door and a window."""
    eaves, half = rng.uniform(-0.18, 0.0), rng.uniform(0.72, 0.8)
    door, window = rng.choice(((-0.35, 0.32), (0.35, -0.32)))
    return [
        Part(DARK, rectangle(0.38, -0.9, 0.6, -0.3)),
        Part(FILL, rectangle(-half, eaves - 0.05, half, 1)),
        Part(DARK, polygon((-1, eaves), (0, -1), (1, eaves))),
        Part(DARK, rectangle(door - 0.17, 0.38, door + 0.17, 1)),
        Part(LIGHT, rectangle(window - 0.19, 0.25, window + 0.19, 0.62)),
    ]


def umbrella(rng: Random) -> list[Part]:
    """An open canopy with scalloped hem, ribs and a hooked handle."""
    height = rng.uniform(0.85, 1.0)
    parts = [Part(FILL, arc((0, 0), (1, height), 180, 360, 28))]
    parts += [
        Part(HOLE, arc((x, 0.02), (0.25, 0.15), 180, 360, 12)) for x in (-0.75, -0.25, 0.25, 0.75)
    ]
    parts += [Part(DARK, stroke((0, 0.02 - height), (x, -0.02), 0.04)) for x in (-0.5, 0.5)]
    parts.append(Part(DARK, rectangle(-0.05, -height - 0.1, 0.05, 0.75)))
    parts.append(Part(DARK, band((0.17, 0.75), 0.17, 0.1, 0, 180)))
    return parts


def cup(rng: Random) -> list[Part]:
    """A mug: tapering body, ear and an open rim."""
    foot, ear = rng.uniform(0.48, 0.6), rng.uniform(0.3, 0.36)
    return [
        Part(FILL, band((0.66, -0.08), ear, 0.15, -90, 90)),
        Part(FILL, polygon((-0.72, -0.7), (0.72, -0.7), (foot, 0.8), (-foot, 0.8))),
        Part(FILL, arc((0, 0.8), (foot, 0.14))),
        Part(LIGHT, arc((0, -0.7), (0.72, 0.2))),
        Part(DARK, arc((0, -0.67), (0.6, 0.14))),
    ]


def key(rng: Random) -> list[Part]:
    """A ringed bow, a long shank and two bits."""
    half, bit = rng.uniform(0.09, 0.13), rng.uniform(0.32, 0.42)
    return [
        Part(FILL, disc((-0.62, 0), 0.42)),
        Part(HOLE, disc((-0.66, 0), 0.2)),
        Part(FILL, rectangle(-0.28, -half, 1, half)),
        Part(FILL, rectangle(0.78, 0, 1, bit)),
        Part(FILL, rectangle(0.42, 0, 0.62, bit * 0.85)),
    ]


def boat(rng: Random) -> list[Part]:
    """A hull with a mast and two sails."""
    mast, deck = rng.uniform(-0.12, 0.02), rng.uniform(0.42, 0.5)
    return [
        Part(DARK, polygon((-1, deck), (1, deck), (0.66, 1), (-0.7, 1))),
        Part(DARK, rectangle(mast - 0.04, -1, mast + 0.04, deck)),
        Part(FILL, polygon((mast + 0.07, -0.95), (0.85, deck - 0.1), (mast + 0.07, deck - 0.1))),
        Part(FILL, polygon((mast - 0.08, -0.75), (mast - 0.08, deck - 0.1), (-0.8, deck - 0.1))),
    ]


def ladder(rng: Random) -> list[Part]:
    """Two rails and four or five rungs."""
    num_rungs, half = rng.choice((4, 5)), rng.uniform(0.4, 0.5)
    rails = [rectangle(x - 0.09, -1, x + 0.09, 1) for x in (-half, half)]
    levels = np.linspace(-0.76, 0.76, num_rungs).tolist()
    rungs = [rectangle(-half, y - 0.075, half, y + 0.075) for y in levels]
    return [Part(FILL, bar) for bar in (*rails, *rungs)]


def bell(rng: Random) -> list[Part]:
    """A flaring bell with a lip, a clapper and a loop."""
    waist = rng.uniform(0.44, 0.54)
    right = ((0.3, -0.74), (waist, -0.35), (waist + 0.08, 0.2), (0.86, 0.62))
    flank = smooth((0, -0.8), *right, *((-x, y) for x, y in reversed(right)))
    return [
        Part(DARK, disc((0, 0.78), 0.2)),
        Part(DARK, disc((0, -0.84), 0.16)),
        Part(FILL, flank),
        Part(FILL, rectangle(-0.86, 0.5, 0.86, 0.68)),
        Part(DARK, rectangle(-0.7, 0.38, 0.7, 0.45)),
    ]


def car(rng: Random) -> list[Part]:
    """A saloon from the side: body, cabin with two windows, two wheels."""
    roof, bonnet = rng.uniform(-0.6, -0.5), rng.uniform(-0.05, 0.02)
    parts = [
        Part(FILL, polygon((-0.62, bonnet), (-0.4, roof), (0.28, roof), (0.58, bonnet))),
        Part(
            FILL, smooth((-1, 0), (-0.6, -0.06), (0.6, -0.06), (1, 0.1), (0.98, 0.4), (-0.98, 0.4))
        ),
        Part(
            LIGHT, polygon((-0.47, -0.03), (-0.32, roof + 0.12), (-0.1, roof + 0.12), (-0.1, -0.03))
        ),
        Part(LIGHT, polygon((0, -0.03), (0, roof + 0.12), (0.22, roof + 0.12), (0.42, -0.03))),
    ]
    for x in (-0.52, 0.54):
        parts += [Part(DARK, disc((x, 0.4), 0.26)), Part(LIGHT, disc((x, 0.4), 0.1))]
    return parts


def rocket(rng: Random) -> list[Part]:
    """A pointed hull with two fins, a porthole and a flame."""
    half = rng.uniform(0.28, 0.35)
    right = ((half * 0.75, -0.55), (half, -0.1), (half * 0.8, 0.55))
    hull = smooth((0, -1), *right, *((-x, y) for x, y in reversed(right)))
    fin = polygon((half * 0.7, 0.05), (0.68, 0.52), (0.66, 0.82), (half * 0.6, 0.5))
    return [
        Part(LIGHT, polygon((-0.2, 0.5), (0.2, 0.5), (0.08, 0.8), (0, 1), (-0.08, 0.8))),
        Part(DARK, fin),
        Part(DARK, mirrored(fin)),
        Part(FILL, hull),
        Part(LIGHT, disc((0, -0.25), 0.15)),
        Part(DARK, disc((0, -0.25), 0.08)),
    ]


def bottle(rng: Random) -> list[Part]:
    """A narrow neck with a cap over a straight body with a label."""
    neck, shoulder = rng.uniform(0.11, 0.15), rng.uniform(-0.3, -0.15)
    right = [(neck, -0.85), (neck, shoulder - 0.22), (0.37, shoulder + 0.1), (0.37, 1)]
    return [
        Part(FILL, polygon(*right, *((-x, y) for x, y in reversed(right)))),
        Part(DARK, rectangle(-neck - 0.03, -1, neck + 0.03, -0.8)),
        Part(LIGHT, rectangle(-0.37, 0.22, 0.37, 0.6)),
    ]


def crown(rng: Random) -> list[Part]:
    """Five points with balls over a broad band."""
    valley = rng.uniform(-0.05, 0.1)
    tips = ((-0.95, -0.5), (-0.5, -0.66), (0, -0.76), (0.5, -0.66), (0.95, -0.5))
    zigzag = [tips[0], (-0.7, valley), tips[1], (-0.25, valley), tips[2]]
    right = [(-x, y) for x, y in reversed(zigzag[:-1])]
    parts = [Part(FILL, polygon(*zigzag, *right, (0.78, 0.72), (-0.78, 0.72)))]
    parts += [Part(FILL, disc(tip, 0.11)) for tip in tips]
    parts.append(Part(DARK, rectangle(-0.79, 0.42, 0.79, 0.54)))
    return parts


def anchor(rng: Random) -> list[Part]:
    """A ship's anchor: ring, stock, shank and two upturned arms."""
    width, stock = rng.uniform(0.16, 0.2), rng.uniform(0.4, 0.48)
    fluke = polygon((0.6, 0.3), (0.98, 0.0), (1.0, 0.48))
    return [
        Part(FILL, disc((0, -0.78), 0.23)),
        Part(HOLE, disc((0, -0.78), 0.1)),
        Part(FILL, rectangle(-width / 2, -0.6, width / 2, 0.95)),
        Part(FILL, rectangle(-stock, -0.45, stock, -0.45 + width)),
        Part(FILL, band((0, 0.12), 0.76, width, 15, 165)),
        Part(FILL, fluke),
        Part(FILL, mirrored(fluke)),
    ]


def shirt(rng: Random) -> list[Part]:
    """A short-sleeved shirt with a round neck."""
    cuff, hem = rng.uniform(-0.1, 0.05), rng.uniform(0.54, 0.6)
    right = [
        (0.3, -0.85),
        (0.58, -0.78),
        (1, cuff - 0.18),
        (0.76, cuff),
        (0.55, -0.25),
        (hem, 0.92),
    ]
    return [
        Part(FILL, polygon(*right, *((-x, y) for x, y in reversed(right)))),
        Part(HOLE, arc((0, -0.88), (0.26, 0.22), num_points=18)),
        Part(
            DARK,
            np.concatenate(
                [arc((0, -0.86), (0.33, 0.3), 0, 180, 12), arc((0, -0.86), (0.25, 0.2), 180, 0, 12)]
            ),
        ),
    ]
