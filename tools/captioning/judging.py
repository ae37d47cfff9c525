"""Whether what a model wrote can serve as a caption."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

_WORDS = re.compile(r"\w+")
_QUOTES = ('""', "''", "\u201c\u201d", "\u2018\u2019")
_REPLACEMENT = "\ufffd"


class Fault(StrEnum):
    """Why a sample has no new caption."""

    EMPTY = "empty"
    """Nothing was written."""
    ONE_WORD = "one_word"
    """One word only; LaCLIP's loader would serve the original instead."""
    BROKEN = "broken"
    """It holds U+FFFD: token ids that are no text."""
    COPY = "copy"
    """It has the words of the caption or of a text in the prompt."""
    RUNS_ON = "runs_on"
    """It goes on with a further pair of input and output."""
    TOO_LONG = "too_long"
    """It had not ended after the tokens allowed, or the prompt does not fit the model."""
    REFUSED = "refused"
    """The model declined. Not tried again."""
    UNREADABLE = "unreadable"
    """The picture cannot be read, decoded or taken in by the model. Not tried again."""


def tidied(text: str) -> str:
    """On one line, without quotes around the whole."""
    text = " ".join(text.split())
    if len(text) > 1 and text[0] + text[-1] in _QUOTES and text[0] not in text[1:-1]:
        return text[1:-1].strip()
    return text


def fault_of(text: str, *, finished: bool, copies_of: Iterable[str]) -> Fault | None:
    """What is wrong with a caption.

    Args:
        text: the caption, tidied.
        finished: whether the model ended it within the tokens allowed.
        copies_of: texts that it must not repeat; case and punctuation do not count.

    Returns:
        The first fault found, or None if there is none.
    """
    words = _words(text)
    if not finished:
        return Fault.TOO_LONG
    if not words:
        return Fault.EMPTY
    if len(words) == 1:
        return Fault.ONE_WORD
    if _REPLACEMENT in text:
        return Fault.BROKEN
    return Fault.COPY if any(words == _words(other) for other in copies_of) else None


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.casefold())
