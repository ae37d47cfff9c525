"""From the seconds of the stages to a ladder: what each further stage costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tessera.tools.benchmarks.turns import Turn

WHOLE_STEP = "whole step"
"""The last rung: with the plan and the hand-over between the stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """A stage and all before it."""

    name: str
    """Of the stage that this rung adds."""
    us_per_image: float
    """Microseconds of this stage alone, median over the turns."""
    images_per_s: float
    """Rate of this stage and all before it, one after the other."""
    mb_per_s: float
    """The same in image files, 10^6 bytes a second."""
    share_of_limit: float | None
    """Of a full libjpeg-turbo decode alone on as many cores; None before anything is decoded."""


def ladder(turns: Sequence[Turn], limit: float | None) -> list[Rung]:
    """The rungs of steps made one at a time.

    Args:
        turns: of a `StepwiseSide`.
        limit: images a second of a full decode; None where it is unknown.
    """
    # What is read again in place of a bad sample counts where the time went; the rate is of images.
    micro = {
        name: statistics.median(1e6 * t.known["busy_s"][name] / t.num_images for t in turns)
        for name in turns[0].known["busy_s"]
    }
    whole = statistics.median(1e6 * t.seconds / t.num_images for t in turns)
    micro[WHOLE_STEP] = max(0.0, whole - sum(micro.values()))
    file_bytes = statistics.fmean(t.known["stage_bytes"]["read"] / t.num_images for t in turns)
    rungs, total = [], 0.0
    for name, each in micro.items():
        total += each
        rate = 1e6 / total
        rungs.append(
            Rung(
                name=name,
                us_per_image=each,
                images_per_s=rate,
                mb_per_s=rate * file_bytes / 1e6,
                share_of_limit=rate / limit if limit and rungs else None,
            )
        )
    return rungs


def as_json(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(rung) for rung in rungs]


def lines(rungs: Sequence[Rung]) -> list[str]:
    """A table, a line each."""
    found = [f"{'':14} {'us/image':>10} {'images/s':>10} {'MB/s':>9} {'of limit':>9}"]
    for place, rung in enumerate(rungs):
        share = "" if rung.share_of_limit is None else f"{rung.share_of_limit:9.0%}"
        name = f"{'+ ' if place else '  '}{rung.name}"
        found.append(
            f"{name:14} {rung.us_per_image:10,.0f} {rung.images_per_s:10,.0f} "
            f"{rung.mb_per_s:9,.1f} {share}"
        )
    return found
