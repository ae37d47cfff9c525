"""HTML by construction: what is not markup already is escaped, and every tag that opens closes."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = frozenset({"br", "hr", "img", "link", "meta"})
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Return a value as HTML text, control characters and lone surrogates replaced."""
    if isinstance(value, Markup):
        return value
    return Markup(
        html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True)
    )


def join(parts: Iterable[str | None], separator: str = "") -> Markup:
    """Return the parts one after the other, escaped where they are plain text; None is left out."""
    return Markup(escape(separator).join(escape(part) for part in parts if part is not None))


def tag(name: str, /, *children: str | None, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: Tag name, written as it is.
        *children: Plain text is escaped, `Markup` is not, None is left out.
        **attributes: Values are escaped and None left out; a trailing underscore is dropped
            (`class_`), inner ones become hyphens (`aria_label`).
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def shorten(text: str, most: int) -> str:
    """Return a text of at most `most` characters, cut at a word with an ellipsis."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    return text[: most - 1].rsplit(" ", 1)[0] + "\N{HORIZONTAL ELLIPSIS}"
