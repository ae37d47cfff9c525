"""The demo's pictures and captions: simple shapes on soft backgrounds, drawn with PIL.

`describe` says what a sample shows, as a pure function of seed, split and number; `draw` paints it
and `captions` puts it in words. No training picture has a colour on a background that it has in
`HELDOUT`; the held-out pictures show nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Split = Literal["train", "heldout"]
Rgb = tuple[int, int, int]
Points = list[tuple[float, float]]
"""Corners of a line or polygon, x to the right and y down."""
_WHITE, _SHADE = (255, 255, 255), (22, 18, 40)

COLOURS: dict[str, Rgb] = {
    "red": (217, 56, 62),
    "orange": (243, 141, 48),
    "yellow": (250, 209, 71),
    "green": (62, 158, 94),
    "blue": (48, 102, 196),
    "purple": (124, 80, 176),
    "pink": (243, 144, 182),
    "brown": (120, 76, 48),
    "white": (250, 248, 242),
    "black": (40, 41, 50),
}
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "in a cloudy sky", "among the clouds"),
    "night": ("at night", "in the night sky", "in a starry sky"),
    "sunset": ("at sunset", "in the evening sky", "against a sunset"),
    "meadow": ("on a meadow", "on the grass", "in a field"),
    "beach": ("on the beach", "on the sand", "on a sandy beach"),
    "sea": ("on the sea", "on the waves", "on the water"),
    "snow": ("in the snow", "on the snow", "on a snowy hill"),
    "brick": ("in front of a brick wall", "against a brick wall", "on a wall of bricks"),
}
"""Phrases for each, the first for its classes. Colour words are for objects alone."""
_FAINT = "blue sky, white sky, black night, blue night, purple night, orange sunset, pink sunset"
_FAINT += (
    ", purple sunset, green meadow, yellow beach, white beach, blue sea, white snow, red brick"
)
_FAINT += ", brown brick, orange brick"
PAIRS = [pair for pair in product(COLOURS, BACKGROUNDS) if " ".join(pair) not in _FAINT.split(", ")]
"""Colours and the backgrounds on which they stand out."""
HELDOUT = tuple(pair for number, pair in enumerate(PAIRS) if number % 12 in (1, 2, 6, 7, 9, 10))
"""Colours and backgrounds that only held-out pictures have together: the zero-shot classes."""
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def _circle(radius: float, x: float = 0.0, y: float = 0.0, petals: float = 0.0) -> Points:
    """A circle, or a flower of six petals that swell by a share of the radius."""
    turns = [2 * math.pi * k / 120 for k in range(120)]
    radii = [radius * (1 + petals * math.cos(6 * turn)) for turn in turns]
    both = zip(radii, turns, strict=True)
    return [(x + r * math.sin(turn), y - r * math.cos(turn)) for r, turn in both]


def _heart(t: float) -> tuple[float, float]:
    height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return math.sin(t) ** 3, -height / 16.5 - 0.12


_ARM = ((0.32, -0.32), (0.96, -0.32), (0.96, 0.32))
_QUARTERS = ((1, 0), (0, 1), (-1, 0), (0, -1))
SHAPES: dict[str, tuple[Points, ...]] = {
    "circle": (_circle(1),),
    "square": ([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],),
    "triangle": ([(0, -0.95), (1, 0.8), (-1, 0.8)],),
    "star": ([_circle((1.0, 0.42)[k % 2])[12 * k] for k in range(10)],),
    "heart": ([_heart(math.pi * k / 60) for k in range(120)],),
    "ring": (_circle(1), _circle(0.56)),
    "crescent": (_circle(1), _circle(0.84, 0.42, -0.12)),
    "flower": (_circle(0.76, petals=0.32), _circle(0.2)),
    "cross": ([(x * c - y * s, x * s + y * c) for c, s in _QUARTERS for x, y in _ARM],),
    "arrow": ([(0, -1), (0.85, 0), (0.34, 0), (0.34, 1), (-0.34, 1), (-0.34, 0), (-0.85, 0)],),
}
"""An outline within a circle of radius 1, and what is cut out of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """Objects of one kind in a picture."""

    shape: str
    colour: str
    size: str
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a picture shows: one kind of object, or two that stand in a relation."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None


def rng_of(seed: int, split: Split, number: int, purpose: str) -> Random:
    """A generator for one purpose of one sample, independent of all others."""
    return Random(f"{seed}/{split}/{number}/{purpose}")


def describe(seed: int, split: Split, number: int) -> Scene:
    """What sample `number` of a split shows; held-out classes come in turn."""
    rng = rng_of(seed, split, number, "scene")
    if split == "heldout":
        colour, background = HELDOUT[number % len(HELDOUT)]
        count = (1, 1, 1, 2, 3)[number // len(HELDOUT) % 5]
        return Scene(things=(_thing(rng, colour, count),), background=background)
    background = rng.choice(tuple(BACKGROUNDS))
    colours = [c for c, b in PAIRS if b == background and (c, b) not in HELDOUT]
    if rng.random() < 0.25:
        things = tuple(_thing(rng, colour) for colour in rng.sample(colours, 2))
        return Scene(things=things, background=background, relation=rng.choice(tuple(RELATIONS)))
    thing = _thing(rng, rng.choice(colours), rng.choice((1, 1, 1, 1, 2, 3, 4)))
    return Scene(things=(thing,), background=background)


def _thing(rng: Random, colour: str, count: int = 1) -> Thing:
    shape, size = rng.choice(tuple(SHAPES)), rng.choice(tuple(SIZES))
    return Thing(shape=shape, colour=colour, size=size, count=count)


def class_name(colour: str, background: str) -> str:
    """A held-out pair in words, such as "a red object on the beach"."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} object {BACKGROUNDS[background][0]}"


def captions(rng: Random, scene: Scene, number: int, detail: float) -> list[str]:
    """Sentences that differ in more than capitals and the full stop.

    Shapes and colours are always named, size and background with probability `detail`, and nothing
    is said that the picture does not show.
    """
    found: dict[str, str] = {}
    while len(found) < number:
        text = _caption(rng, scene, detail)
        found.setdefault(text, text if rng.random() < 0.5 else f"{text[0].upper()}{text[1:]}.")
    return list(found.values())


def _caption(rng: Random, scene: Scene, detail: float) -> str:
    what = _phrase(rng, scene.things[0], detail)
    if scene.relation:
        other = _phrase(rng, scene.things[1], detail)
        what = f"{what} {rng.choice(RELATIONS[scene.relation])} {other}"
    frames = ["{0}", "a picture of {0}", "this picture shows {0}"]
    frames.append("there are {0}" if scene.things[0].count > 1 else "there is {0}")
    if rng.random() < detail:
        frames = [f"{frame} {{1}}" for frame in frames] + ["{1}, {0}"]
    return rng.choice(frames).format(what, rng.choice(BACKGROUNDS[scene.background]))


def _phrase(rng: Random, thing: Thing, detail: float) -> str:
    words = f"{thing.colour} {thing.shape}"
    if rng.random() < detail:
        words = f"{rng.choice(SIZES[thing.size])} {words}"
    if thing.count > 1:
        return f"{COUNTS[thing.count]} {words}{'es' if words.endswith('s') else 's'}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def draw(rng: Random, scene: Scene, size: tuple[int, int] | None = None) -> Image.Image:
    """Paint a scene larger than asked for and reduce it, so that edges are soft.

    Args:
        rng: of the sample.
        scene: what to show.
        size: (width, height) in pixels; by default 80 to 112 by up to 1.4 times that.
    """
    if size is None:
        short = rng.randint(80, 112)
        long = round(short * rng.choice((1.0, 5 / 4, 4 / 3, rng.uniform(1.0, 1.4))))
        size = (short, long) if rng.random() < 0.4 else (long, short)
    scale = 3 if max(size) < 256 else 2
    canvas = Image.new("RGB", (scale * size[0], scale * size[1]))
    _paint_background(rng, canvas, scene.background)
    edge = min(canvas.size)
    left, top = ((side - edge) / 2 for side in canvas.size)
    for thing, x, y, radius in lay_out(rng, scene):
        _paint(rng, canvas, thing, (left + x * edge, top + y * edge), radius * edge)
    return canvas.reduce(scale)


_LOW, _HIGH = 0.27, 0.73
_ROW, _COLUMN = [(_LOW, 0.5), (_HIGH, 0.5)], [(0.5, _LOW), (0.5, _HIGH)]
_SPOTS: dict[int | str, list[Points]] = {
    "left of": [_ROW],
    "right of": [_ROW[::-1]],
    "above": [_COLUMN],
    "below": [_COLUMN[::-1]],
    1: [[(0.5, 0.5)]],
    2: [_ROW, _COLUMN],
    3: [[(0.5, _LOW), (_LOW, _HIGH), (_HIGH, _HIGH)]],
    4: [[(_LOW, _LOW), (_LOW, _HIGH), (_HIGH, _LOW), (_HIGH, _HIGH)]],
}


def lay_out(rng: Random, scene: Scene) -> list[tuple[Thing, float, float, float]]:
    """Every object with its middle (x, y) and radius, as shares of the picture's middle square."""
    things = [thing for thing in scene.things for _ in range(thing.count)]
    is_alone = len(things) == 1
    radii = {"small": 0.17, "large": 0.32} if is_alone else {"small": 0.11, "large": 0.19}
    found = []
    for thing, spot in zip(things, rng.choice(_SPOTS[scene.relation or len(things)]), strict=True):
        room = 0.44 - radii[thing.size] if is_alone else 0.03
        x, y = (middle + rng.uniform(-room, room) for middle in spot)
        found.append((thing, x, y, radii[thing.size] * rng.uniform(0.92, 1.1)))
    return found


def _paint(
    rng: Random, canvas: Image.Image, thing: Thing, middle: tuple[float, float], radius: float
) -> None:
    """One object, lit from above, with its rim and shadow."""
    half, turn = math.ceil(1.3 * radius), rng.uniform(-0.3, 0.3)
    size, corner = (2 * half, 2 * half), (round(middle[0]) - half, round(middle[1]) - half)
    c, s = radius * math.cos(turn), radius * math.sin(turn)
    mask = Image.new("L", size)
    for number, outline in enumerate(SHAPES[thing.shape]):
        points = [(half + x * c - y * s, half + x * s + y * c) for x, y in outline]
        ImageDraw.Draw(mask).polygon(points, fill=0 if number else 255)
    shift = max(1, round(0.07 * radius))
    shadow = ImageChops.offset(mask, shift, 2 * shift).filter(ImageFilter.BoxBlur(shift))
    canvas.paste(_SHADE, corner, shadow.point(lambda level: 0.4 * level))
    red, green, blue = (level + rng.randint(-9, 9) for level in COLOURS[thing.colour])
    base = (red, green, blue)
    body = Image.new("RGB", size)
    _fill(body, _mixed(base, _WHITE, 0.25), base, _mixed(base, _SHADE, 0.2))
    rim = ImageChops.subtract(mask, ImageChops.offset(mask, shift // 2 + 1, shift))
    body.paste(_mixed(base, _WHITE, 0.6), mask=rim.point(lambda level: 0.6 * level))
    canvas.paste(body, corner, mask)


def _mixed(first: Rgb, second: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _fill(canvas: Image.Image, *colours: Rgb) -> None:
    """Colours from the upper edge to the lower one."""
    strip = Image.new("RGB", (1, len(colours)))
    strip.putdata(list(colours))
    box = (0, 0.5, 1, len(colours) - 0.5)
    column = strip.resize((1, canvas.height), Image.Resampling.BICUBIC, box=box)
    canvas.paste(column.resize(canvas.size, Image.Resampling.NEAREST))


def _wave(rng: Random, width: int, y: float, height: float, length: float) -> Points:
    """A wavy line from edge to edge."""
    phase, step = rng.uniform(0, 2 * math.pi), max(2, width // 60)
    across = range(-step, width + 2 * step, step)
    return [(x, y + height * math.sin(phase + 2 * math.pi * x / length)) for x in across]


def _hills(rng: Random, canvas: Image.Image, top: float, end: float, *colours: Rgb) -> None:
    """Layers one before the other; the first begins near `top`, all by `end`, of the height."""
    (width, height), start = canvas.size, top * rng.uniform(0.8, 1.2)
    for k, colour in enumerate(colours):
        y = height * (start + (end - start) * k / len(colours))
        line = _wave(rng, width, y, 0.03 * height, width * rng.uniform(0.9, 1.6))
        ImageDraw.Draw(canvas).polygon([*line, (width, height), (0, height)], fill=colour)


def _dots(rng: Random, canvas: Image.Image, count: int, top: float, size: float, fill: Rgb) -> None:
    """Dots of up to a size, below a share of the height."""
    width, height = canvas.size
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(top, 1) * height
        radius = rng.uniform(0.35, 1) * size * min(width, height)
        ImageDraw.Draw(canvas).circle((x, y), radius, fill=fill)


def _clouds(rng: Random, canvas: Image.Image) -> None:
    width, height = canvas.size
    clouds = Image.new("L", canvas.size)
    for _ in range(rng.randint(2, 4)):
        x, y = rng.uniform(0, width), rng.uniform(0.08, 0.9) * height
        unit = rng.uniform(0.06, 0.11) * width
        for k, bulge in enumerate((1.0, 1.4, 1.6, 1.3, 0.9), -2):
            dx, r = 0.9 * k * unit, bulge * unit
            box = (x + dx - r, y - 0.8 * r, x + dx + r, y + 0.55 * r)
            ImageDraw.Draw(clouds).ellipse(box, fill=220)
    canvas.paste((253, 254, 255), mask=clouds.filter(ImageFilter.BoxBlur(width / 100)))


def _ripples(rng: Random, canvas: Image.Image) -> None:
    width, height = canvas.size
    for k in range(10):
        line = _wave(rng, width, height * (k + rng.random()) / 10, 0.012 * height, 0.11 * height)
        part = line[rng.randrange(len(line) // 2) :][: len(line) // 3]
        ImageDraw.Draw(canvas).line(part, (108, 178, 208), round(0.012 * height), joint="curve")


def _bricks(rng: Random, canvas: Image.Image) -> None:
    tall = canvas.height / rng.randint(6, 8)
    wide, gap = 2.1 * tall, 0.06 * tall
    for row, column in product(range(8), range(-1, math.ceil(canvas.width / wide))):
        x, y = (column + 0.5 * (row % 2 + 1)) * wide, row * tall
        box = (x + gap, y + gap, x + wide - gap, y + tall - gap)
        shade = _mixed((192, 112, 88), _SHADE, rng.uniform(0, 0.2))
        ImageDraw.Draw(canvas).rounded_rectangle(box, 0.1 * tall, fill=shade)


def _paint_background(rng: Random, canvas: Image.Image, name: str) -> None:
    match name:
        case "sky":
            _fill(canvas, (96, 164, 226), (150, 198, 238), (212, 232, 246))
            _clouds(rng, canvas)
        case "night":
            _fill(canvas, (14, 18, 52), (34, 38, 88), (66, 60, 118))
            _dots(rng, canvas, 45, 0, 0.008, (250, 244, 214))
        case "sunset":
            _fill(canvas, (92, 62, 140), (206, 98, 134), (250, 158, 104), (255, 214, 142))
            _hills(rng, canvas, 0.82, 1, (112, 62, 104), (74, 44, 84))
        case "meadow":
            _fill(canvas, (178, 216, 242), (226, 240, 240))
            _hills(rng, canvas, 0.16, 1, (164, 206, 122), (140, 192, 100), (112, 174, 82))
            _dots(rng, canvas, 30, 0.35, 0.01, (84, 148, 66))
        case "beach":
            _fill(canvas, (96, 188, 204), (140, 210, 210))
            _hills(rng, canvas, 0.16, 0.3, (250, 250, 246), (216, 190, 138), (236, 212, 162))
            _dots(rng, canvas, 40, 0.4, 0.008, (206, 178, 126))
        case "sea":
            _fill(canvas, (66, 152, 190), (30, 98, 150), (20, 72, 122))
            _ripples(rng, canvas)
        case "snow":
            _fill(canvas, (160, 190, 222), (206, 222, 238))
            _hills(rng, canvas, 0.18, 1, (222, 232, 244), (234, 241, 249), (246, 249, 253))
            _dots(rng, canvas, 40, 0, 0.012, _WHITE)
        case "brick":
            _fill(canvas, (214, 198, 184), (200, 184, 170))
            _bricks(rng, canvas)
