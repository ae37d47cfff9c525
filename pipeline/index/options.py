"""What is read from every sample, and how thoroughly it is checked."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from tessera.pipeline.index.image_check import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SHA256 = "sha256"
DHASH = "dhash"
_COLUMN_TYPES = {"string": pa.large_string(), "float": pa.float64()}
_PILLOW_MAX_PIXELS = 178_956_970
"""Twice `PIL.Image.MAX_IMAGE_PIXELS`, beyond which Pillow opens nothing."""
_COLUMN_NAME = re.compile(r"^\w+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanOptions:
    """How samples are read and checked."""

    captions: str = "txt"
    """`txt`: the sample's .txt. `lines`: each line of it, as CLIP_benchmark stores several texts.
    `json:FIELD`: a string or a list of strings in its .json; FIELD.NAME is a field within a field,
    and of all objects of a list. `class`: the number in its .cls, for labelled sets without texts,
    which are not to train on."""
    full_decode: bool = True
    """Decode every image. Otherwise only its header, and a JPEG's end marker, are checked."""
    columns: tuple[str, ...] = ()
    """Fields of the sample's .json, or of the parquet beside the shard, to keep: `NAME` for a
    string, `NAME:float` for a number."""
    sha256: bool = False
    """Keep the SHA-256 of every image file."""
    dhash: bool = False
    """Keep a 64-bit difference hash of every picture, alike for look-alike ones."""
    max_image_pixels: int = MAX_IMAGE_PIXELS
    """Pictures that claim more pixels are rejected before they are decoded."""
    max_image_bytes: int = MAX_IMAGE_BYTES
    """Larger image files are rejected before they are read."""
    image_suffix: tuple[str, ...] = ()
    """Suffixes of the images, the first one found counts; by default jpg, jpeg, png and webp."""
    caption_suffix: str = ""
    """Suffix of the member that holds the captions; by default txt, or json for `json:FIELD`."""
    key_to_last_dot: bool = False
    """A key goes to the last dot of a member's name; by default to the first, as in webdataset."""
    keys_per_shard: bool = False
    """A key is SHARD/KEY, for shards that all number their samples anew."""

    def __post_init__(self) -> None:
        suffixes = tuple(map(_bare, self.image_suffix))
        object.__setattr__(self, "image_suffix", suffixes)
        object.__setattr__(self, "caption_suffix", _bare(self.caption_suffix))
        if self.key_to_last_dot and any("." in each for each in (*suffixes, self.caption_suffix)):
            raise ValueError("a key that goes to the last dot leaves no suffix with a dot in it")
        if self.captions == "class" and self.caption_suffix:
            raise ValueError("captions='class' takes the number in the .cls, and no caption_suffix")
        if self.captions not in ("txt", "lines", "class") and not self.json_field:
            known = "'txt', 'lines', 'class' or 'json:FIELD'"
            raise ValueError(f"captions must be {known}, got {self.captions!r}")
        if self.dhash and not self.full_decode:
            raise ValueError("the difference hash needs every image decoded: leave full_decode on")
        if not 1 <= self.max_image_pixels <= _PILLOW_MAX_PIXELS:
            msg = f"max_image_pixels must lie between 1 and {_PILLOW_MAX_PIXELS}"
            raise ValueError(f"{msg}, got {self.max_image_pixels}")
        if self.max_image_bytes < 1:
            raise ValueError(f"max_image_bytes must be at least 1, got {self.max_image_bytes}")
        for spec in self.columns:
            name, _, kind = spec.partition(":")
            if not _COLUMN_NAME.match(name) or (kind or "string") not in _COLUMN_TYPES:
                msg = f"a column is NAME, NAME:string or NAME:float, got {spec!r}"
                raise ValueError(msg)
            if name in (SHA256, DHASH):
                raise ValueError(f"the column {name} is computed: ask for it with --{name}")
        names = [spec.partition(":")[0] for spec in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice in {', '.join(self.columns)}")

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        """Suffixes of images, in the order in which they are looked for."""
        return self.image_suffix or IMAGE_SUFFIXES

    @property
    def text_suffix(self) -> str:
        """Suffix of the member that captions are read from."""
        usual = "json" if self.json_field else "cls" if self.captions == "class" else "txt"
        return self.caption_suffix or usual

    @property
    def json_suffix(self) -> str:
        """Suffix of the json that captions or columns are read from."""
        return self.text_suffix if self.json_field else "json"

    @property
    def json_field(self) -> str:
        """FIELD of `json:FIELD`; empty for the others."""
        kind, _, name = self.captions.partition(":")
        return name if kind == "json" else ""

    @property
    def fields(self) -> dict[str, pa.DataType]:
        """The columns that are taken from json or parquet, and their types."""
        parts = (spec.partition(":") for spec in self.columns)
        return {name: _COLUMN_TYPES[kind or "string"] for name, _, kind in parts}

    @property
    def column_types(self) -> dict[str, pa.DataType]:
        """All optional columns and their types, in the order in which they are kept."""
        types = dict(self.fields)
        if self.sha256:
            types[SHA256] = pa.binary(32)
        if self.dhash:
            types[DHASH] = pa.uint64()
        return types

    @property
    def command_line(self) -> list[str]:
        """Words of tools/index_shards.py that ask for these options, where they are not usual."""
        words: list[str] = []
        for each in fields(self):
            value, option = getattr(self, each.name), each.name.replace("_", "-")
            if value == each.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            elif isinstance(value, tuple):
                words += [f"--{option}", *value]
            else:
                words += [f"--{option}", str(value)]
        return words

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScanOptions:
        """The options of `to_json`.

        Raises:
            TypeError: there are others.
            ValueError: a value is out of its range.
        """
        lists = {name: tuple(values.get(name, ())) for name in ("columns", "image_suffix")}
        return cls(**{**values, **lists})

    def to_json(self) -> dict[str, Any]:
        """These options as plain JSON values."""
        lists = {"columns": list(self.columns), "image_suffix": list(self.image_suffix)}
        return {**asdict(self), **lists}


def _bare(suffix: str) -> str:
    """A suffix as `tar_walk` has it."""
    return suffix.lower().removeprefix(".")
