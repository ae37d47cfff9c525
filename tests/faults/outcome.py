"""What one injected fault led to."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bench import Bench


class SkippedError(Exception):
    """This machine cannot inject the fault; says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A fault that was survived."""

    times: int = 1
    """How often it was injected before the job was left alone."""
    said: str = ""
    """The line with which the job named the cause; empty if it went on, or was killed."""
    ended_s: float = math.nan
    """Seconds from the fault until no process of the job was left; NaN if it went on."""
    back_s: float = math.nan
    """Seconds from the next start until it was further than before; NaN if it never stopped."""
    lost: int = 0
    """Samples that a pass lacks, or has twice, and that no message names."""
    replaced: int = 0
    """Samples that could not be read; each is named in the log, and another stood in for it."""


Fault = Callable[[Bench, random.Random, Path], Outcome]
"""Injects a fault in an empty folder; an exception says what did not hold afterwards."""


def line_with(output: str, *words: str) -> str:
    """The last line of an output that holds all words, in any case.

    Raises:
        AssertionError: there is none, or the output holds a traceback.
    """
    assert "Traceback" not in output, f"a traceback instead of a message:\n{output[-3000:]}"
    for line in reversed(output.splitlines()):
        if all(word.lower() in line.lower() for word in words):
            return line.strip()
    raise AssertionError(f"no line names {words}:\n{output[-3000:]}")
