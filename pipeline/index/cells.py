"""What a cell of a table means: none, one or several texts."""

from __future__ import annotations

import ast
import math
import re

MAX_TEXT_CHARACTERS = 65_536
"""Characters of one caption at most, in the index and in every table."""

_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LIST = re.compile(rf"\s*\[\s*{_STRING}(?:\s*,\s*{_STRING}|\s+{_STRING})*\s*,?\s*\]\s*", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)


def is_null(value: object) -> bool:
    """None, or the NaN that data frames have for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def texts_of(value: object) -> list[str]:
    """The texts that a cell stands for.

    A string that spells a list of strings, as data frames write lists into a CSV
    (`['a dog', "two dogs"]`, also without commas, as NumPy prints them), is that list.

    Args:
        value: a text, a list of texts, or a null of whatever library.

    Returns:
        The texts as they are; none for a null. Nulls inside a list are left out.

    Raises:
        ValueError: the value, or a part of it, is something else.
    """
    if is_null(value):
        return []
    if isinstance(value, str):
        return listed_texts(value) or [value]
    if isinstance(value, list | tuple):
        wrong = [each for each in value if not (isinstance(each, str) or is_null(each))]
        if not wrong:
            return [text for text in value if isinstance(text, str)]
        value = wrong[0]
    raise ValueError(f"{str(value)[:80]!r} is {type(value).__name__}, not text")


def listed_texts(text: str) -> list[str]:
    """The strings of a text that spells a list of strings; empty where it spells none."""
    if not text.lstrip().startswith("[") or not _LIST.fullmatch(text):
        return []
    try:
        return [ast.literal_eval(found) for found in _STRINGS.findall(text)]
    except (ValueError, SyntaxError):
        return []


def too_long(text: str) -> str | None:
    """One sentence where a text is longer than an index takes; else None."""
    if len(text) <= MAX_TEXT_CHARACTERS:
        return None
    return f"{len(text)} characters exceed the limit of {MAX_TEXT_CHARACTERS}"


def is_storable(text: str) -> bool:
    """Whether UTF-8 can hold a text: not if it has half of a surrogate pair.

    JSON can spell one, and bytes that are not of a file's encoding are read as such.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
