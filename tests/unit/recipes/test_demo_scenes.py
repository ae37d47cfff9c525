"""The drawn scenes: splits, layout, pictures, and captions that state only what is true."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from random import Random

import numpy as np
import pytest
from PIL import Image

from tessera.recipes.demo.backgrounds import paint_background
from tessera.recipes.demo.captions import (
    BACKGROUND_PHRASES,
    COUNT_WORDS,
    FULL,
    INVERSE_PHRASES,
    PLACE_PHRASES,
    RELATION_PHRASES,
    SIZE_WORDS,
    TEXTURE_TAILS,
    TEXTURE_WORDS,
    class_names,
)
from tessera.recipes.demo.objects import (
    BACKGROUNDS,
    COLOURS,
    HELDOUT_PAIRS,
    SHAPES,
    backgrounds_for,
    textures_of,
    train_backgrounds,
)
from tessera.recipes.demo.paint import mix_palette, paint_object
from tessera.recipes.demo.picture import lay_out
from tessera.recipes.demo.samples import DemoSample, make_sample
from tessera.recipes.demo.scenes import Scene, Split, Thing, describe

NAMES = {
    shape.name: {name for pair in ((shape.name, shape.plural), *shape.other_names) for name in pair}
    for shape in SHAPES
}


@pytest.fixture(scope="module")
def train_scenes() -> list[Scene]:
    return [describe(0, "train", k) for k in range(4000)]


@pytest.fixture(scope="module")
def samples() -> list[DemoSample]:
    splits: tuple[Split, ...] = ("train", "heldout")
    return [make_sample(3, split, k) for split in splits for k in range(400)]


def mentioned(text: str, phrases: Iterable[str]) -> set[str]:
    return {p for p in phrases if p and re.search(rf"\b{re.escape(p)}\b", text)}


def test_held_out_pairs_leave_every_colour_and_background_in_training() -> None:
    assert len(HELDOUT_PAIRS) >= 20
    assert len(set(HELDOUT_PAIRS)) == len(HELDOUT_PAIRS)
    for colour in COLOURS:
        assert any(colour == held for held, _ in HELDOUT_PAIRS)
        # A cloud may not be drawn on the sky, nor a star on the night, which can cost one more.
        assert all(len(train_backgrounds(shape.name, colour)) >= 2 for shape in SHAPES)
    for background in BACKGROUNDS:
        colours = [c for c in COLOURS if background in train_backgrounds("square", c)]
        assert len(colours) >= 3, background


def test_training_has_all_other_pairs_and_none_of_the_held_out(train_scenes: list[Scene]) -> None:
    pairs = {(thing.colour, scene.background) for scene in train_scenes for thing in scene.things}
    everything = {(c, b) for c in COLOURS for b in backgrounds_for("square", c)}
    assert pairs == everything - set(HELDOUT_PAIRS)


def test_held_out_scenes_have_one_kind_of_object_and_balanced_classes() -> None:
    scenes = [describe(0, "heldout", k) for k in range(600)]
    assert all(len(scene.things) == 1 and scene.relation is None for scene in scenes)
    counts = Counter((scene.things[0].colour, scene.background) for scene in scenes)
    assert set(counts) == set(HELDOUT_PAIRS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(set(scenes)) == len(scenes)
    assert len({scene.things[0].shape for scene in scenes}) == len(SHAPES)


def test_class_names_say_the_held_out_pairs() -> None:
    names = class_names()
    assert len(set(names)) == len(HELDOUT_PAIRS)
    for name, (colour, background) in zip(names, HELDOUT_PAIRS, strict=True):
        assert mentioned(name, (colour,))
        assert mentioned(name, BACKGROUND_PHRASES[background])


def test_training_scenes_are_varied(train_scenes: list[Scene]) -> None:
    assert {s.background for s in train_scenes} == set(BACKGROUNDS)
    assert {s.relation for s in train_scenes} == {None, *RELATION_PHRASES}
    assert {s.place for s in train_scenes} == {None, *PLACE_PHRASES}
    assert {s.things[0].count for s in train_scenes} == {1, 2, 3, 4}
    assert {t.texture for s in train_scenes for t in s.things} == set(TEXTURE_WORDS)
    assert {t.size for s in train_scenes for t in s.things} == set(SIZE_WORDS)


def test_a_sample_depends_on_its_arguments_only() -> None:
    assert make_sample(5, "train", 17) == make_sample(5, "train", 17)
    different = (make_sample(6, "train", 17), make_sample(5, "train", 18))
    assert all(other.jpeg != make_sample(5, "train", 17).jpeg for other in different)


def test_held_out_captions_are_nearly_unique() -> None:
    captions = [make_sample(0, "heldout", k).captions[0] for k in range(600)]
    plain = Counter(caption.lower().rstrip(".") for caption in captions)
    assert sum(n - 1 for n in plain.values()) / len(captions) < 0.02


def test_captions_name_the_objects_and_no_others(samples: list[DemoSample]) -> None:
    for sample in samples:
        for caption in sample.captions:
            for shape, names in NAMES.items():
                is_there = shape in {thing.shape for thing in sample.scene.things}
                general = mentioned(caption.lower(), ("object", "objects", "thing", "things"))
                if general:
                    assert sample.split == "train"
                    assert sample.scene.relation is None
                is_named = bool(mentioned(caption.lower(), names))
                assert is_named == (is_there and not general), (caption, shape)


def test_captions_use_no_colour_texture_size_or_count_that_is_untrue(
    samples: list[DemoSample],
) -> None:
    for sample in samples:
        things = sample.scene.things
        said = {
            "colour": {c: (c, *spec.other_names) for c, spec in COLOURS.items()},
            "texture": {t: (*TEXTURE_WORDS[t], *TEXTURE_TAILS[t]) for t in TEXTURE_WORDS},
            "size": {s: tuple(filter(None, SIZE_WORDS[s])) for s in SIZE_WORDS},
            "count": COUNT_WORDS,
        }
        for caption in sample.captions:
            for attribute, words in said.items():
                true = {getattr(thing, attribute) for thing in things}
                stated = {value for value in words if mentioned(caption.lower(), words[value])}
                assert stated <= true, (caption, attribute)


def test_captions_name_no_other_background_or_place(samples: list[DemoSample]) -> None:
    for sample in samples:
        for caption in sample.captions:
            text = caption.lower()
            stated = {b for b in BACKGROUNDS if mentioned(text, BACKGROUND_PHRASES[b])}
            # "on wood" is the beginning of nothing else, but "in the sky" lies in no other either.
            assert stated <= {sample.scene.background}, caption
            if sample.scene.relation is None:
                places = {p for p in PLACE_PHRASES if mentioned(text, PLACE_PHRASES[p])}
                assert places <= {sample.scene.place}, caption


def relations_said(text: str, first: set[str], second: set[str]) -> set[str]:
    """Relations of the first thing to the second that a caption states."""
    start = min(text.index(name) for name in mentioned(text, first))
    other = min(text.index(name) for name in mentioned(text, second))
    table = RELATION_PHRASES if start < other else INVERSE_PHRASES
    # Without the background: "in front of a brick wall" and "over rippling water" are no relations.
    between = text[min(start, other) : max(start, other)]
    return {relation for relation, phrases in table.items() if mentioned(between, phrases)}


def test_captions_state_the_relation_the_right_way_round(samples: list[DemoSample]) -> None:
    num_stated = 0
    for sample in samples:
        if sample.scene.relation is None:
            continue
        first, second = (NAMES[thing.shape] for thing in sample.scene.things)
        for caption in sample.captions:
            said = relations_said(caption.lower(), first, second)
            assert said <= {sample.scene.relation}, (caption, sample.scene)
            num_stated += bool(said)
    assert num_stated > 100


def test_held_out_captions_say_everything(samples: list[DemoSample]) -> None:
    for sample in (s for s in samples if s.split == "heldout"):
        thing, text = sample.scene.things[0], sample.captions[0].lower()
        assert mentioned(text, (thing.colour, *COLOURS[thing.colour].other_names))
        assert mentioned(text, TEXTURE_WORDS[thing.texture] + TEXTURE_TAILS[thing.texture])
        assert mentioned(text, SIZE_WORDS[thing.size])
        assert mentioned(text, BACKGROUND_PHRASES[sample.scene.background])
        assert thing.count == 1 or mentioned(text, COUNT_WORDS[thing.count])
        assert sample.scene.place is None or mentioned(text, PLACE_PHRASES[sample.scene.place])


def test_captions_are_plain_english(samples: list[DemoSample]) -> None:
    for sample in samples:
        assert len({caption.lower().rstrip(".") for caption in sample.captions}) == 3
        for caption in sample.captions:
            text = caption.lower()
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), caption
            assert "  " not in caption
            assert caption == caption.strip()
            assert text.isascii()
    styles = [s.captions[0] for s in samples]
    assert any(c.isupper() for c in styles)
    assert any(c.endswith(".") for c in styles)
    assert any(c.islower() and not c.endswith(".") for c in styles)


def test_numbers_agree_with_nouns() -> None:
    two = Scene(
        things=(Thing(shape="leaf", colour="red", texture="plain", size="small", count=2),),
        background="sand",
    )
    from tessera.recipes.demo.captions import write_captions

    for caption in write_captions(Random(0), two, FULL, 60):
        assert "leaves" in caption.lower()
        assert " is " not in caption.lower()


def test_objects_lie_inside_the_picture_and_relations_hold(train_scenes: list[Scene]) -> None:
    for k, scene in enumerate(train_scenes[:1500]):
        spots = lay_out(Random(k), scene)
        assert len(spots) == sum(thing.count for thing in scene.things)
        for spot in spots:
            assert min(spot.x, spot.y) - spot.size / 2 > -0.02
            assert max(spot.x, spot.y) + spot.size / 2 < 1.02
        if scene.relation in ("left of", "right of", "above", "below"):
            first, second = sorted(spots, key=lambda spot: spot.thing)
            dx, dy = second.x - first.x, second.y - first.y
            along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[scene.relation]
            across = dy if scene.relation in ("left of", "right of") else dx
            assert along > 0.3 > 2 * abs(across)
        elif scene.relation is None:
            for i, a in enumerate(spots):
                for b in spots[:i]:
                    assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.size + b.size) / 2


def test_single_objects_fill_a_third_to_three_quarters(train_scenes: list[Scene]) -> None:
    for k, scene in enumerate(train_scenes):
        if len(scene.things) == 1 and scene.things[0].count == 1:
            assert 0.3 <= lay_out(Random(k), scene)[0].size <= 0.75


@pytest.mark.parametrize("shape", [shape.name for shape in SHAPES])
def test_every_class_is_drawn_whole_and_solid(shape: str) -> None:
    for k in range(6):
        rng = Random(k)
        palette = mix_palette(rng, "red")
        sprite = paint_object(rng, shape, palette, rng.choice(textures_of(shape)), 60.0)
        covered = sprite.coverage > 0.5
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 57 <= longer <= 61
        assert 0.1 < covered.sum() / longer**2 <= 1.0
        border = np.ones_like(covered)
        border[2:-2, 2:-2] = False
        assert not covered[border].any()
        assert sprite.colour[~border].max() <= 255 * 1.5


@pytest.mark.parametrize("colour", list(COLOURS))
def test_colours_stand_out_from_the_backgrounds_they_are_drawn_on(colour: str) -> None:
    for background in backgrounds_for("square", colour):
        for k in range(3):
            rng = Random(k)
            around = np.clip(paint_background(rng, background, (96, 96)), 0, 255)
            base = np.asarray(mix_palette(rng, colour).base)
            distance = np.linalg.norm(base - around.reshape(-1, 3).mean(axis=0))
            assert distance > 45, background


@pytest.mark.parametrize("texture", ["striped", "dotted", "checkered", "speckled"])
def test_textures_can_be_seen(texture: str) -> None:
    for colour in COLOURS:
        deviations = []
        for name in ("plain", texture):
            rng = Random(colour)
            sprite = paint_object(rng, "square", mix_palette(rng, colour), name, 30.0)
            inside = sprite.softened > 0.99
            deviations.append(sprite.colour[inside].std(axis=0).max())
        assert deviations[1] > deviations[0] + 20, colour


def test_pictures_are_small_jpegs_of_varied_extent_and_quality(samples: list[DemoSample]) -> None:
    sizes, tables = set(), set()
    for sample in samples:
        with Image.open(io.BytesIO(sample.jpeg)) as image:
            assert image.format == "JPEG"
            assert image.mode == "RGB"
            assert image.size == (sample.width, sample.height)
            tables.add(sum(image.quantization[0]))  # pyright: ignore[reportAttributeAccessIssue]
        assert 80 <= min(image.size) <= 112
        assert max(image.size) <= 1.41 * min(image.size)
        sizes.add(image.size)
    assert len(sizes) > 100
    assert len(tables) > 15
