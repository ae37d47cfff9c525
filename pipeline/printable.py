"""Text as it may be shown on a terminal: that of other people, and lines nobody may read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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


def print_all(lines: Iterable[str]) -> None:
    """Write lines to stdout; whoever reads them may have seen enough, as `head` has.

    Nothing may be printed afterwards.
    """
    try:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def message_of(error: BaseException) -> str:
    """What an exception says, without memory addresses and tuples."""
    many = len(error.args) > 1 and not isinstance(error, OSError)
    text = ", ".join(map(str, error.args)) if many else str(error)
    return _ADDRESS.sub("", text) or type(error).__name__
