"""Text of other people as it may be shown on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters, escapes and what turns its direction spelt out.

    Names and captions come from other people: printed as they are, they could clear the screen,
    set the terminal's title, or show a name backwards.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
