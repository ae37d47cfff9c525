"""Pages as jinja2 templates: one HTML file that loads nothing and runs no script.

Everything that a template prints is escaped, and control characters are replaced. A browser follows
the policy in base.html.jinja: it fetches nothing, whatever a caption holds.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from tessera.pipeline.durable import write_text
from tessera.report import numbers

Picture: TypeAlias = NDArray[np.uint8]
"""[H, W, 3] uint8, RGB."""


class Headline(NamedTuple):
    """A large number at the top of a page."""

    value: str
    """The number, as it is shown."""
    label: str
    """What it counts."""
    against: str = ""
    """What to compare it with."""


_TEMPLATES = Path(__file__).with_name("templates")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_LOSSLESS_BELOW = 96
"""Pixels: tiny pictures are shown enlarged, and JPEG's blocks would show."""


def write(path: Path, template: str, **context: Any) -> None:
    """Write a page, whole or not at all.

    Args:
        path: the file; its folder is made when missing, and an older file is replaced at once.
        template: name in templates/, without its endings.
        context: what the template shows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(template, **context))


def render(template: str, **context: Any) -> str:
    """Return a page as text; the same content gives the same text."""
    return _environment().get_template(f"{template}.html.jinja").render(context)


def now() -> str:
    """The time for a page's foot, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def data_uri(picture: Picture, largest: int = 320) -> str:
    """Return a picture [H, W, 3] uint8 as a data address, its longer side at most `largest`."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= _LOSSLESS_BELOW:
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        # Not optimize=True: Pillow then needs the whole file in a buffer, too small for noise.
        image.save(buffer, "JPEG", quality=84, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("count", "percent", "short_count", "duration", "decimal", "flop_count", "size")
    made.filters |= {name: getattr(numbers, name) for name in names}
    made.filters |= {"shorten": numbers.shorten, "picture": data_uri, "day": _day}
    return made


def _printable(value: object) -> object:
    if isinstance(value, Markup):
        return value
    return clean(str(value))


def clean(text: str) -> str:
    """Return a text with control characters and lone surrogates replaced."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _day(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = ""
    if moment.tzinfo is not None:
        zone = " UTC" if moment.utcoffset() == timedelta(0) else f" UTC{moment.isoformat()[-6:]}"
    return f"{moment:%Y-%m-%d %H:%M}{zone}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, value)."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found += flatten(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", str(value)))
    return found
