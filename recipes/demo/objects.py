"""What can be drawn: object classes, colours and textures, with what may go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tessera.recipes.demo import outlines_figures as figures
from tessera.recipes.demo import outlines_things as things
from tessera.recipes.demo.outlines import Part

ANY_TURN = 180.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeClass:
    """One of the object classes: how it is drawn and what it is called."""

    name: str
    """Singular English name, the zero-shot class name."""

    plural: str
    """Plural of the name."""

    draw: Callable[[Random], list[Part]]
    """Draws one object of the class upright, with variations."""

    max_turn_deg: float
    """Largest rotation either way, in degrees, that keeps the meaning; 180 is any."""

    is_thin: bool = False
    """Made of narrow bars, on which dots, checks or speckles could not be seen."""

    other_names: tuple[tuple[str, str], ...] = ()
    """Further (singular, plural) names that captions may use."""


def _shape(
    name: str,
    draw: Callable[[Random], list[Part]],
    max_turn_deg: float,
    *others: str,
    plural: str = "",
    is_thin: bool = False,
) -> ShapeClass:
    return ShapeClass(
        name=name,
        plural=plural or name + "s",
        draw=draw,
        max_turn_deg=max_turn_deg,
        is_thin=is_thin,
        other_names=tuple((other, other + "s") for other in others),
    )


SHAPES: tuple[ShapeClass, ...] = (
    _shape("star", figures.star, ANY_TURN, "five-pointed star"),
    _shape("heart", figures.heart, 25, "heart shape"),
    _shape("crescent moon", figures.crescent_moon, 60, "moon", "crescent"),
    _shape("arrow", figures.arrow, ANY_TURN, is_thin=True),
    _shape("cross", figures.cross, 12, "plus sign", plural="crosses", is_thin=True),
    _shape("ring", figures.ring, ANY_TURN, "hoop"),
    _shape("triangle", figures.triangle, ANY_TURN),
    _shape("square", figures.square, 14),
    _shape("hexagon", figures.hexagon, ANY_TURN),
    _shape("house", things.house, 10),
    _shape("tree", figures.tree, 10, "fir tree", "pine tree"),
    _shape("fish", figures.fish, 30, plural="fish"),
    _shape("flower", figures.flower, ANY_TURN, "blossom"),
    _shape("leaf", figures.leaf, ANY_TURN, plural="leaves"),
    _shape("mushroom", figures.mushroom, 15, "toadstool"),
    _shape("umbrella", things.umbrella, 25, "open umbrella"),
    _shape("cup", things.cup, 12, "mug"),
    _shape("key", things.key, ANY_TURN, is_thin=True),
    _shape("boat", things.boat, 12, "sailboat", "sailing boat"),
    _shape("butterfly", figures.butterfly, 40, plural="butterflies"),
    _shape("cloud", figures.cloud, 8),
    _shape("lightning bolt", figures.lightning_bolt, 15, "thunderbolt"),
    _shape("apple", figures.apple, 20),
    _shape("ladder", things.ladder, 30, is_thin=True),
    _shape("bell", things.bell, 18),
    _shape("car", things.car, 10, "motor car"),
    _shape("rocket", things.rocket, 50, "space rocket"),
    _shape("bottle", things.bottle, 25),
    _shape("crown", things.crown, 15),
    _shape("anchor", things.anchor, 15, is_thin=True),
    _shape("shirt", things.shirt, 15, "t-shirt"),
    _shape("cactus", figures.cactus, 8, plural="cacti", is_thin=True),
)

SHAPE_BY_NAME: dict[str, ShapeClass] = {shape.name: shape for shape in SHAPES}


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """A colour name and the range of pigments it stands for."""

    hue: tuple[float, float]
    """Range of HSV hue in turns; may leave [0, 1), which wraps."""

    saturation: tuple[float, float]
    """Range of HSV saturation, 0 to 1."""

    value: tuple[float, float]
    """Range of HSV value, 0 to 1."""

    other_names: tuple[str, ...] = ()
    """Further names that captions may use."""

    unlike: tuple[str, ...] = ()
    """Colours too close to tell apart where two objects overlap."""

    lost_on: tuple[str, ...] = ()
    """Backgrounds on which the colour would hardly be seen."""


COLOURS: dict[str, Colour] = {
    "red": Colour(
        hue=(-0.015, 0.012),
        saturation=(0.85, 0.97),
        value=(0.72, 0.9),
        other_names=("scarlet",),
        unlike=("red", "orange", "brown", "pink"),
        lost_on=("brick",),
    ),
    "orange": Colour(
        hue=(0.065, 0.09),
        saturation=(0.88, 1.0),
        value=(0.92, 1.0),
        unlike=("orange", "red", "yellow", "brown"),
        lost_on=("brick", "wood"),
    ),
    "yellow": Colour(
        hue=(0.145, 0.165),
        saturation=(0.8, 0.95),
        value=(0.92, 1.0),
        unlike=("yellow", "orange", "white"),
        lost_on=("sand",),
    ),
    "green": Colour(
        hue=(0.31, 0.38),
        saturation=(0.65, 0.9),
        value=(0.45, 0.7),
        unlike=("green",),
        lost_on=("grass",),
    ),
    "blue": Colour(
        hue=(0.59, 0.64),
        saturation=(0.75, 0.95),
        value=(0.65, 0.9),
        unlike=("blue", "purple"),
        lost_on=("water", "sky", "night"),
    ),
    "purple": Colour(
        hue=(0.755, 0.79),
        saturation=(0.6, 0.8),
        value=(0.5, 0.72),
        other_names=("violet",),
        unlike=("purple", "blue", "black"),
        lost_on=("night",),
    ),
    "pink": Colour(
        hue=(0.9, 0.945),
        saturation=(0.38, 0.55),
        value=(0.95, 1.0),
        unlike=("pink", "red", "white"),
    ),
    "brown": Colour(
        hue=(0.05, 0.075),
        saturation=(0.62, 0.76),
        value=(0.36, 0.48),
        unlike=("brown", "black", "red", "orange"),
        lost_on=("wood", "brick", "night"),
    ),
    "white": Colour(
        hue=(0.0, 1.0),
        saturation=(0.0, 0.04),
        value=(0.94, 1.0),
        unlike=("white", "yellow", "pink"),
        lost_on=("snow", "sky"),
    ),
    "black": Colour(
        hue=(0.0, 1.0),
        saturation=(0.0, 0.15),
        value=(0.05, 0.12),
        unlike=("black", "purple", "brown"),
        lost_on=("night",),
    ),
}

TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered", "speckled")
THIN_TEXTURES: tuple[str, ...] = ("plain", "striped")

BACKGROUNDS: tuple[str, ...] = ("sky", "grass", "sand", "water", "wood", "brick", "snow", "night")

# A cloud among clouds or a star among stars would make the count in a caption untrue.
_SHAPES_NOT_ON: dict[str, tuple[str, ...]] = {"cloud": ("sky",), "star": ("night",)}


def textures_of(shape: str) -> tuple[str, ...]:
    """Textures that can be seen on an object of the class."""
    return THIN_TEXTURES if SHAPE_BY_NAME[shape].is_thin else TEXTURES


def backgrounds_for(shape: str, colour: str) -> tuple[str, ...]:
    """Backgrounds on which an object of this class and colour stands out."""
    barred = COLOURS[colour].lost_on + _SHAPES_NOT_ON.get(shape, ())
    return tuple(name for name in BACKGROUNDS if name not in barred)


def _draw_heldout_pairs() -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for number, (colour, spec) in enumerate(COLOURS.items()):
        seen_on = [name for name in BACKGROUNDS if name not in spec.lost_on]
        # Two or three of the five to eight backgrounds of a colour, other ones for each colour.
        count = 3 if len(seen_on) >= 7 else 2
        pairs += [(colour, seen_on[(3 * number + 2 * k) % len(seen_on)]) for k in range(count)]
    return tuple(pairs)


HELDOUT_PAIRS: tuple[tuple[str, str], ...] = _draw_heldout_pairs()
"""(colour, background) pairs drawn in the held-out split only; the same for every seed.

They are the classes of the zero-shot evaluation, in this order. What an object is would be the
more natural class, but telling 32 outlines apart takes more than the few minutes of the demo.
"""


def train_backgrounds(shape: str, colour: str) -> tuple[str, ...]:
    """Backgrounds that an object of this class and colour has in training."""
    return tuple(b for b in backgrounds_for(shape, colour) if (colour, b) not in HELDOUT_PAIRS)
