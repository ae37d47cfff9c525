"""The drawn scenes: splits, layout, pictures, and captions that state only what is true."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from random import Random

import numpy as np
import pytest

from tessera.recipes import demo_scenes
from tessera.recipes.demo_scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    HELDOUT,
    PAIRS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    captions,
    class_name,
    describe,
    draw,
    lay_out,
)


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return [describe(0, "train", number) for number in range(3000)]


@pytest.fixture(scope="module")
def said(train: list[Scene]) -> list[tuple[Scene, str]]:
    """Scenes of both splits, each with its captions in lower case."""
    scenes = train[:400] + [describe(0, "heldout", number) for number in range(200)]
    return [
        (scene, text.lower())
        for number, scene in enumerate(scenes)
        for text in captions(Random(number), scene, 3, 0.8)
    ]


def mentioned(text: str, phrases: Iterable[str]) -> set[str]:
    return {phrase for phrase in phrases if re.search(rf"\b{re.escape(phrase)}\b", text)}


def shapes_in(text: str) -> list[str]:
    """In the order of the text."""
    return re.findall(rf"\b({'|'.join(SHAPES)})(?:s|es)?\b", text)


def test_training_shows_every_pair_but_those_that_are_held_out(train: list[Scene]) -> None:
    shown = {(thing.colour, scene.background) for scene in train for thing in scene.things}
    assert shown == set(PAIRS) - set(HELDOUT)
    for place, names in enumerate((COLOURS, BACKGROUNDS)):
        assert set(names) == {pair[place] for pair in shown} == {pair[place] for pair in HELDOUT}


def test_training_shows_everything_that_can_be_said(train: list[Scene]) -> None:
    things = [thing for scene in train for thing in scene.things]
    assert {scene.relation for scene in train} == {None, *RELATIONS}
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.size for thing in things} == set(SIZES)
    assert {thing.count for thing in things} == {1, *COUNTS}


def test_held_out_classes_are_balanced_and_named() -> None:
    scenes = [describe(0, "heldout", number) for number in range(600)]
    counts = Counter((scene.things[0].colour, scene.background) for scene in scenes)
    assert set(counts) == set(HELDOUT)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(len(scene.things) == 1 for scene in scenes)
    names = [class_name(*pair) for pair in HELDOUT]
    assert len(set(names)) == len(names) > 25
    for name, (colour, background) in zip(names, HELDOUT, strict=True):
        assert mentioned(name, COLOURS) == {colour}
        assert mentioned(name, BACKGROUNDS[background])


def test_captions_name_shapes_colours_sizes_and_counts_that_are_there(
    said: list[tuple[Scene, str]],
) -> None:
    for scene, text in said:
        assert set(shapes_in(text)) == {thing.shape for thing in scene.things}, text
        assert mentioned(text, COLOURS) == {thing.colour for thing in scene.things}, text
        sizes = {size for size, words in SIZES.items() if mentioned(text, words)}
        assert sizes <= {thing.size for thing in scene.things}, text
        counts = {count for count, word in COUNTS.items() if mentioned(text, [word])}
        assert counts == {thing.count for thing in scene.things} - {1}, text


def test_captions_name_no_other_background(said: list[tuple[Scene, str]]) -> None:
    for scene, text in said:
        found = {name for name, phrases in BACKGROUNDS.items() if mentioned(text, phrases)}
        assert found <= {scene.background}, text


def test_captions_state_the_relation_the_right_way_round(said: list[tuple[Scene, str]]) -> None:
    pairs = [(scene, text) for scene, text in said if scene.relation]
    assert len(pairs) > 100
    for scene, text in pairs:
        assert shapes_in(text) == [thing.shape for thing in scene.things], text
        first, second = (re.search(rf"\b{thing.colour}\b", text) for thing in scene.things)
        assert first
        assert second
        between = text[first.end() : second.start()]
        assert {r for r in RELATIONS if mentioned(between, RELATIONS[r])} == {scene.relation}, text


def test_captions_are_plain_english_that_differ(said: list[tuple[Scene, str]]) -> None:
    for _, text in said:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |^ | $", text), text
    crosses = Thing(shape="cross", colour="red", size="small", count=2)
    scene = Scene(things=(crosses,), background="meadow")
    texts = captions(Random(0), scene, 12, 1.0)
    assert len({text.lower().strip(".") for text in texts}) == 12
    assert all("crosses" in text and " is " not in text for text in texts)


def test_objects_lie_inside_the_picture_apart_and_as_the_relation_says(train: list[Scene]) -> None:
    for number, scene in enumerate(train):
        spots = lay_out(Random(number), scene)
        assert len(spots) == sum(thing.count for thing in scene.things)
        for place, (_, x, y, radius) in enumerate(spots):
            assert radius - 0.05 < min(x, y) <= max(x, y) < 1.05 - radius
            for _, other_x, other_y, other in spots[:place]:
                assert np.hypot(x - other_x, y - other_y) > radius + other - 0.02
        if scene.relation:
            (_, x, y, _), (_, other_x, other_y, _) = spots
            along, across = other_x - x, other_y - y
            if scene.relation in ("above", "below"):
                along, across = across, along
            sign = 1 if scene.relation in ("left of", "above") else -1
            assert sign * along > 0.3 > 3 * abs(across)


@pytest.mark.parametrize(("colour", "background"), PAIRS)
def test_objects_stand_out_from_their_background(colour: str, background: str) -> None:
    thing = Thing(shape="circle", colour=colour, size="large")
    scene = Scene(things=(thing,), background=background)
    pixels = np.asarray(draw(Random(0), scene, (96, 96)), np.float32)
    inside = np.linalg.norm(pixels - np.array(COLOURS[colour], np.float32), axis=2) < 60
    assert 0.15 < inside.mean() < 0.6
    around = pixels[:12].reshape(-1, 3).mean(axis=0)
    assert np.linalg.norm(around - np.array(COLOURS[colour], np.float32)) > 55


def test_shapes_differ_and_fill_their_place() -> None:
    masks = []
    for shape in SHAPES:
        thing = Thing(shape=shape, colour="red", size="large")
        pixels = np.asarray(draw(Random(1), Scene(things=(thing,), background="snow"), (96, 96)))
        red = pixels.astype(int)
        masks.append((red[..., 0] - red[..., 2]) > 60)
        assert 0.05 < masks[-1].mean() < 0.4, shape
    for place, mask in enumerate(masks):
        assert all((mask ^ other).mean() > 0.02 for other in masks[:place])


def test_pictures_depend_on_their_seed_alone_and_vary_in_size() -> None:
    def picture(seed: int, number: int) -> bytes:
        rng = demo_scenes.rng_of(seed, "train", number, "picture")
        return draw(rng, describe(seed, "train", number)).tobytes()

    assert picture(0, 3) == picture(0, 3)
    assert len({picture(0, 3), picture(0, 4), picture(1, 3)}) == 3
    scene = describe(0, "train", 0)
    sizes = {draw(Random(number), scene).size for number in range(40)}
    assert len(sizes) > 25
    assert all(80 <= min(size) <= 112 and max(size) <= 1.41 * min(size) for size in sizes)
