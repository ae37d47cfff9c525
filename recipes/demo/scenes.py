"""What a picture shows, before anything is drawn: a pure function of (seed, split, sample).

`describe(seed, split, index)` returns a Scene, the structured truth that the painter draws and
that captions may state. Training never shows a colour on a background that it has in
`HELDOUT_PAIRS`; the held-out split shows nothing else, one kind of object per picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from random import Random
from typing import Literal

from tessera.recipes.demo.objects import (
    COLOURS,
    HELDOUT_PAIRS,
    SHAPES,
    backgrounds_for,
    textures_of,
    train_backgrounds,
)

Split = Literal["train", "heldout"]

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below", "in front of")
PLACES: tuple[str, ...] = ("left", "right", "top", "bottom", "middle")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One kind of object in a picture."""

    shape: str
    """Name of its class."""

    colour: str
    """Name of its colour."""

    texture: str
    """Name of its texture."""

    size: str
    """small, medium or large, in relation to the picture; medium is never put in words."""

    count: int = 1
    """How many of it there are, 1 to 4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that is true of a picture and may be said of it."""

    things: tuple[Thing, ...]
    """One or two kinds of object; where there are two, each is there once."""

    background: str
    """Name of the background."""

    relation: str | None = None
    """Where the first thing is with regard to the second, or None with one kind of object."""

    place: str | None = None
    """Part of the picture that a small single object is in, or None where none is marked."""


def sample_rng(seed: int, split: Split, index: int, purpose: str) -> Random:
    """Generator for one purpose of one sample, independent of every other."""
    return Random(f"{seed}/{split}/{index}/{purpose}")


def describe(seed: int, split: Split, index: int) -> Scene:
    """The scene of sample `index` of a split.

    Args:
        seed: Seed of the data set.
        split: "train" or "heldout".
        index: Number of the sample within its split, from 0, without an upper bound.

    Returns:
        The scene, the same for the same arguments.
    """
    if split == "heldout":
        return _heldout_scene(seed, index)
    rng = sample_rng(seed, split, index, "scene")
    kind = rng.random()
    if kind < 0.6:
        return _single(rng)
    return _group(rng) if kind < 0.78 else _pair(rng)


def _train_thing(rng: Random, sizes: Sequence[str], count: int = 1) -> Thing:
    shape = rng.choice(SHAPES).name
    return Thing(
        shape=shape,
        colour=rng.choice(tuple(COLOURS)),
        texture=_texture(rng, shape),
        size=rng.choice(sizes),
        count=count,
    )


def _texture(rng: Random, shape: str) -> str:
    return "plain" if rng.random() < 0.3 else rng.choice(textures_of(shape))


def _single(rng: Random) -> Scene:
    thing = _train_thing(rng, ("small", "medium", "large", "large"))
    return Scene(
        things=(thing,),
        background=rng.choice(train_backgrounds(thing.shape, thing.colour)),
        place=rng.choice(PLACES) if thing.size == "small" else None,
    )


def _group(rng: Random) -> Scene:
    thing = _train_thing(rng, ("small", "large"), count=rng.choice((2, 2, 3, 3, 4)))
    background = rng.choice(train_backgrounds(thing.shape, thing.colour))
    return Scene(things=(thing,), background=background)


def _pair(rng: Random) -> Scene:
    relation = rng.choice(RELATIONS)
    while True:
        sizes = ("small", "large")
        if relation == "in front of":
            first, second = _train_thing(rng, ("small",)), _train_thing(rng, ("large",))
        else:
            first, second = _train_thing(rng, sizes), _train_thing(rng, sizes)
        backgrounds = shared_backgrounds(first, second)
        overlap_is_clear = second.colour not in COLOURS[first.colour].unlike
        if first.shape == second.shape or not backgrounds:
            continue
        if relation != "in front of" or overlap_is_clear:
            break
    return Scene(things=(first, second), background=rng.choice(backgrounds), relation=relation)


def shared_backgrounds(first: Thing, second: Thing) -> tuple[str, ...]:
    """Backgrounds that both things have in training; may be empty."""
    allowed = train_backgrounds(second.shape, second.colour)
    return tuple(b for b in train_backgrounds(first.shape, first.colour) if b in allowed)


def _heldout_scene(seed: int, index: int) -> Scene:
    # Classes in turn, so that every class has the same number of pictures; within a class three
    # fifths large singles, one fifth small singles, one fifth groups.
    turn, class_id = divmod(index, len(HELDOUT_PAIRS))
    cycle, step = divmod(turn, 5)
    kind = ("large", "small", "group", "large", "large")[step]
    options = _heldout_options(seed, class_id, kind)
    position = 3 * cycle + max(0, step - 2) if kind == "large" else cycle
    return options[position % len(options)]


@lru_cache(maxsize=1024)
def _heldout_options(seed: int, class_id: int, kind: str) -> tuple[Scene, ...]:
    """All scenes of a kind that a class has in the held-out split, in an order drawn by seed."""
    colour, background = HELDOUT_PAIRS[class_id]
    arrangements: tuple[tuple[str, int, str | None], ...]
    if kind == "large":
        arrangements = (("large", 1, None),)
    elif kind == "small":
        arrangements = tuple(("small", 1, place) for place in PLACES)
    else:
        arrangements = tuple((size, n, None) for size in ("small", "large") for n in (2, 3, 4))
    shapes = [shape.name for shape in SHAPES if background in backgrounds_for(shape.name, colour)]
    scenes = [
        Scene(
            things=(Thing(shape=shape, colour=colour, texture=texture, size=size, count=count),),
            background=background,
            place=place,
        )
        for shape, (size, count, place) in product(shapes, arrangements)
        for texture in textures_of(shape)
    ]
    Random(f"{seed}/heldout-order/{colour}/{background}/{kind}").shuffle(scenes)
    return tuple(scenes)
