"""Plain English for a scene: many wordings, more or less detail, nothing that is not visible.

Colour words in a caption always belong to an object; the backgrounds are worded without any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tessera.recipes.demo.objects import COLOURS, HELDOUT_PAIRS, SHAPE_BY_NAME
from tessera.recipes.demo.scenes import Scene, Thing

TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "dotted", "spotted"),
    "checkered": ("checkered", "checkered", "checked"),
    "speckled": ("speckled", "speckled", "blotchy"),
}
TEXTURE_TAILS: dict[str, tuple[str, ...]] = {
    "plain": ("without any pattern",),
    "striped": ("with stripes", "with a striped pattern"),
    "dotted": ("with dots", "with round spots"),
    "checkered": ("with a checkered pattern", "with checks"),
    "speckled": ("with speckles", "with irregular blotches"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little"),
    "medium": ("",),
    "large": ("large", "large", "big"),
}
COUNT_WORDS: dict[int, tuple[str, ...]] = {
    2: ("two", "two", "two", "a pair of"),
    3: ("three", "three", "three", "a group of three"),
    4: ("four", "four", "four", "a group of four"),
}
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at the left side", "to the left"),
    "right": ("on the right", "at the right side", "to the right"),
    "top": ("at the top", "near the upper edge", "high up"),
    "bottom": ("at the bottom", "near the lower edge", "low down"),
    "middle": ("in the middle", "in the centre"),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "sky": ("in a cloudy sky", "against the daytime sky", "in the sky by day", "in the open sky"),
    "grass": ("on the grass", "on a lawn", "in a grassy field", "on a meadow"),
    "sand": ("on the sand", "on a sandy beach", "in the sand", "on dry sand"),
    "water": ("on the water", "on the sea", "over rippling water", "at sea"),
    "wood": ("on a wooden board", "on wooden planks", "in front of a wooden wall", "on wood"),
    "brick": ("in front of a brick wall", "against a brick wall", "on a wall of bricks"),
    "snow": ("on the snow", "in the snow", "on a snowy field", "on fresh snow"),
    "night": ("in the night sky", "against a starry night", "at night", "under a dark starry sky"),
}
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "on the left of", "left of"),
    "right of": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
    "in front of": ("in front of", "partly covering"),
}
INVERSE_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("to the right of", "right of"),
    "right of": ("to the left of", "left of"),
    "above": ("below", "under", "beneath"),
    "below": ("above", "over"),
    "in front of": ("behind", "partly hidden by"),
}

# {what} is the object phrase, {where} the background phrase or nothing.
_FRAMES: tuple[str, ...] = (
    "{what} {where}",
    "{what} {where}",
    "{what} {where}",
    "{where}, {what}",
    "{where} {be} {what}",
    "there {be} {what} {where}",
    "a photo of {what} {where}",
    "a photo of {what} {where}",
    "a picture of {what} {where}",
    "a picture showing {what} {where}",
    "a snapshot of {what} {where}",
    "an image of {what} {where}",
    "this photo shows {what} {where}",
    "{what} can be seen {where}",
    "{what} as seen {where}",
    "we see {what} {where}",
)
_FRAMES_WITHOUT_PLACE: tuple[str, ...] = tuple(
    f.replace(" {where}", "") for f in _FRAMES if not f.startswith("{where}") and " as " not in f
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Detail:
    """How likely a caption is to mention each attribute, 0 to 1."""

    colour: float
    """The object's colour."""

    texture: float
    """A texture other than plain."""

    plain: float
    """That an object has no texture."""

    size: float
    """small or large."""

    place: float
    """The part of the picture that the object is in."""

    background: float
    """What is behind the object."""

    relation: float
    """Where one object is with regard to the other, rather than just `and`."""

    kind: float
    """What a single kind of object is, rather than `object` or `thing`."""


FULL = Detail(
    colour=1.0,
    texture=1.0,
    plain=1.0,
    size=1.0,
    place=1.0,
    background=1.0,
    relation=1.0,
    kind=1.0,
)
VARIED = Detail(
    colour=0.92,
    texture=0.75,
    plain=0.25,
    size=0.6,
    place=0.55,
    background=0.8,
    relation=0.92,
    kind=0.85,
)


def write_captions(rng: Random, scene: Scene, detail: Detail, num_captions: int = 3) -> list[str]:
    """Describes a scene in several ways.

    Args:
        rng: Generator of the sample.
        scene: What the picture shows.
        detail: How much to mention.
        num_captions: How many captions to write.

    Returns:
        That many captions, no two alike.
    """
    captions: list[str] = []
    while len(captions) < num_captions:
        caption = _write(rng, scene, detail)
        if caption.lower().rstrip(".") not in [c.lower().rstrip(".") for c in captions]:
            captions.append(caption)
    return captions


def _write(rng: Random, scene: Scene, detail: Detail) -> str:
    if scene.relation is not None:
        what = _pair_phrase(rng, scene, scene.relation, detail)
    else:
        what = _thing_phrase(rng, scene.things[0], detail)
        if scene.place is not None and rng.random() < detail.place:
            what += " " + rng.choice(PLACE_PHRASES[scene.place])
    if rng.random() < detail.background:
        where = rng.choice(BACKGROUND_PHRASES[scene.background])
        frame = rng.choice(_FRAMES)
    else:
        where, frame = "", rng.choice(_FRAMES_WITHOUT_PLACE)
    be = "is" if scene.things[0].count == 1 else "are"
    return _dressed(rng, frame.format(what=what, where=where, be=be))


def _dressed(rng: Random, text: str) -> str:
    """Capitals and full stop as people use them, which is unevenly."""
    style = rng.random()
    if style < 0.45:
        return text
    if style < 0.85:
        return text[0].upper() + text[1:] + "."
    if style < 0.97:
        return text + "."
    return text.upper()


def class_names() -> list[str]:
    """The held-out pairs as noun phrases, such as "a red object on the grass", in their order."""
    return [
        f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} object {BACKGROUND_PHRASES[where][0]}"
        for colour, where in HELDOUT_PAIRS
    ]


def _noun(rng: Random, thing: Thing, detail: Detail) -> str:
    if rng.random() >= detail.kind:
        return rng.choice(("object", "thing")) + ("s" if thing.count > 1 else "")
    shape = SHAPE_BY_NAME[thing.shape]
    names = (shape.name, shape.plural)
    if shape.other_names and rng.random() < 0.2:
        names = rng.choice(shape.other_names)
    return names[thing.count > 1]


def _with_article(rng: Random, phrase: str, count: int) -> str:
    if count > 1:
        return f"{rng.choice(COUNT_WORDS[count])} {phrase}"
    if rng.random() < 0.12:
        return f"one {phrase}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _thing_phrase(rng: Random, thing: Thing, detail: Detail) -> str:
    """Article or number, adjectives in one of several orders, noun, tail."""
    spec = COLOURS[thing.colour]
    colour = rng.choice((thing.colour,) * 5 + spec.other_names)
    size = rng.choice(SIZE_WORDS[thing.size]) if rng.random() < detail.size else ""
    texture, tail = "", ""
    if rng.random() < (detail.plain if thing.texture == "plain" else detail.texture):
        if rng.random() < 0.7:
            texture = rng.choice(TEXTURE_WORDS[thing.texture])
        else:
            tail = rng.choice(TEXTURE_TAILS[thing.texture])
    if rng.random() >= detail.colour:
        colour = ""
    noun = _noun(rng, thing, detail)
    if colour and not tail and rng.random() < 0.12:
        after = " and ".join(word for word in (texture, colour) if word)
        head = _with_article(rng, _joined(size, noun), thing.count)
        return f"{head} that {'is' if thing.count == 1 else 'are'} {after}"
    adjectives = (texture, colour) if rng.random() < 0.6 else (colour, texture)
    return _joined(_with_article(rng, _joined(size, *adjectives, noun), thing.count), tail)


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)


def _pair_phrase(rng: Random, scene: Scene, relation: str, detail: Detail) -> str:
    named = replace(detail, kind=1.0)  # "a thing left of a thing" would say nothing
    first, second = (_thing_phrase(rng, thing, named) for thing in scene.things)
    if rng.random() >= detail.relation:
        return f"{first} and {second}" if rng.random() < 0.5 else f"{second} and {first}"
    if rng.random() < 0.35:
        return f"{second} {rng.choice(INVERSE_PHRASES[relation])} {first}"
    phrases = RELATION_PHRASES[relation]
    if relation in ("left of", "right of") and rng.random() < 0.1:
        phrases = ("next to", "beside")
    return f"{first} {rng.choice(phrases)} {second}"
