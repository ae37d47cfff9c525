"""What can serve as a caption."""

from __future__ import annotations

import pytest

from tessera.tools.captioning.judging import Fault, fault_of, tidied

CAPTION = "A dog runs, on the beach."


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("two dogs play in the sand", None),
        ("ein Hund läuft am Strand", None),
        ("一只狗 在沙滩上奔跑", None),
        ("", Fault.EMPTY),
        (" .,! ", Fault.EMPTY),
        ("Dog.", Fault.ONE_WORD),
        ("a dog \ufffd runs", Fault.BROKEN),
        ("a DOG runs on the beach", Fault.COPY),
        ("an old car", Fault.COPY),
    ],
)
def test_faults(text: str, fault: Fault | None) -> None:
    assert fault_of(text, finished=True, copies_of=[CAPTION, "An old car"]) == fault


def test_what_has_not_ended_is_too_long_whatever_else_it_is() -> None:
    assert fault_of("two dogs play in", finished=False, copies_of=[]) == Fault.TOO_LONG
    assert fault_of("", finished=False, copies_of=[]) == Fault.TOO_LONG


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ('  "a dog\n runs"  ', "a dog runs"),
        ("\u201ca dog\u201d", "a dog"),
        ('"a" and "b"', '"a" and "b"'),
        ('say "cheese"', 'say "cheese"'),
        ('"', '"'),
    ],
)
def test_quotes_around_the_whole_and_spaces_go(text: str, tidy: str) -> None:
    assert tidied(text) == tidy
