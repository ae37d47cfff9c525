"""Building blocks of the drawn objects: parts with a tone, and the curves they are cut from.

Coordinates are unitless, x to the right, y DOWN, roughly within [-1, 1]; the painter rescales
every finished object by its bounding box, so only proportions matter here.

Shape legend: K points of a curve, P control points, S steps between two control points.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

# The painter draws with these as RGB inks; after supersampling each channel is the share of
# a pixel that the tone covers. HOLE rubs out what was drawn before.
FILL = (255, 0, 0)
DARK = (0, 255, 0)
LIGHT = (0, 0, 255)
HOLE = (0, 0, 0)


class Part(NamedTuple):
    """One closed polygon of an object."""

    tone: tuple[int, int, int]
    """FILL (the object's colour and texture), DARK or LIGHT (a shade of it), or HOLE."""

    points: Points
    """Corners, float64 [K, 2] as (x, y)."""


def polygon(*corners: tuple[float, float]) -> Points:
    """Closed polygon through the given corners, float64 [K, 2]."""
    return np.array(corners, dtype=np.float64)


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """Axis-aligned rectangle, float64 [4, 2]."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


@lru_cache(maxsize=512)
def _unit_arc(start_deg: float, stop_deg: float, num_points: int) -> Points:
    angles = np.radians(np.linspace(start_deg, stop_deg, num_points))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def arc(
    centre: tuple[float, float],
    radii: tuple[float, float],
    start_deg: float = 0.0,
    stop_deg: float = 360.0,
    num_points: int = 28,
) -> Points:
    """Points along an ellipse from start to stop, degrees, clockwise on screen, [K, 2]."""
    return _unit_arc(start_deg, stop_deg, num_points) * radii + centre


def disc(centre: tuple[float, float], radius: float) -> Points:
    """Full circle, float64 [20, 2]."""
    return arc(centre, (radius, radius), num_points=20)


def band(
    centre: tuple[float, float],
    radius: float,
    width: float,
    start_deg: float,
    stop_deg: float,
) -> Points:
    """Part of a ring: `radius` is its middle line, `width` its thickness, [36, 2]."""
    outer_radius, inner_radius = radius + width / 2, radius - width / 2
    outer = arc(centre, (outer_radius, outer_radius), start_deg, stop_deg, 18)
    inner = arc(centre, (inner_radius, inner_radius), stop_deg, start_deg, 18)
    return np.concatenate([outer, inner])


def stroke(start: tuple[float, float], stop: tuple[float, float], width: float) -> Points:
    """Straight bar from start to stop of the given width, float64 [4, 2]."""
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    scale = width / (2 * math.hypot(dx, dy))
    nx, ny = -dy * scale, dx * scale
    return polygon(
        (start[0] + nx, start[1] + ny),
        (stop[0] + nx, stop[1] + ny),
        (stop[0] - nx, stop[1] - ny),
        (start[0] - nx, start[1] - ny),
    )


@lru_cache(maxsize=4)
def _catmull_rom_basis(num_steps: int) -> NDArray[np.float64]:
    t = np.arange(num_steps) / num_steps
    return 0.5 * np.stack(
        [
            -t + 2 * t**2 - t**3,
            2 - 5 * t**2 + 3 * t**3,
            t + 4 * t**2 - 3 * t**3,
            -(t**2) + t**3,
        ],
        axis=1,
    )


def smooth(*controls: tuple[float, float], num_steps: int = 5) -> Points:
    """Closed Catmull-Rom curve through the control points.

    Args:
        controls: The P points (x, y) that the curve passes through.
        num_steps: S points between two neighbours.

    Returns:
        float64 [P * S, 2].
    """
    points = np.array(controls, dtype=np.float64)
    neighbours = np.stack([np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2)], axis=1)
    return (_catmull_rom_basis(num_steps) @ neighbours).reshape(-1, 2)


def turned(points: Points, degrees: float, centre: tuple[float, float] = (0.0, 0.0)) -> Points:
    """Points [K, 2] rotated clockwise on screen about the centre."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - centre) @ np.array([[c, s], [-s, c]]) + centre


def mirrored(points: Points) -> Points:
    """Points [K, 2] flipped left to right about x = 0."""
    return points * (-1.0, 1.0)
