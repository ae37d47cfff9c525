"""The verdict on a soak, by rule, and its pages.

Legend: L lives, C counts of one quantity.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_WARM_UP_MIN = 3.0
"""Counts before this age of a life say how a run starts, not whether it leaks."""
_BLOCK_MIN = 10.0
"""Counts of a life within so many minutes are taken for one piece of evidence."""
_BOUNDS = {"own_mib": 0.03, "num_threads": 0.03, "num_handles": 0.03, "num_shm": 0.03}
"""Growth in an hour that is called a leak, as a share of the mean."""
_NAMES = {
    "own_mib": "memory that no file backs, MiB",
    "pss_mib": "memory (PSS), MiB",
    "rss_mib": "memory (RSS), MiB",
    "num_threads": "threads",
    "num_handles": "file descriptors",
    "num_shm": "files in shared memory",
    "num_temporary": "temporary files",
}
_SIZE = (1000, 170)
_COLOURS = ((31, 119, 180), (214, 39, 40))


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """How a quantity grows with the age of a life, each life having a level of its own."""

    mean: float
    """Of all counts."""
    per_hour: float
    """Growth in an hour."""
    error: float
    """Standard error of `per_hour`."""

    @property
    def interval(self) -> tuple[float, float]:
        """Two standard errors to both sides."""
        return self.per_hour - 2 * self.error, self.per_hour + 2 * self.error


def slope(
    hours: np.ndarray, values: np.ndarray, lives: np.ndarray, *, block_min: float = _BLOCK_MIN
) -> Slope:
    """Least squares with a level for each life, and errors that allow for drifting counts.

    Counts close in time are not independent, so errors are those of blocks of `block_min` minutes
    (cluster-robust, Liang and Zeger 1986; with the factor for few blocks).

    Args:
        hours: [C] age of the life at each count.
        values: [C] what was counted.
        lives: [C] number of the life.
        block_min: length of a block, minutes.

    Raises:
        ValueError: fewer than three blocks.
    """
    x, y = hours.astype(np.float64).copy(), values.astype(np.float64).copy()
    for life in np.unique(lives):
        x[lives == life] -= x[lives == life].mean()
        y[lives == life] -= y[lives == life].mean()
    blocks = np.stack([lives, hours * 60 // block_min], axis=1)
    _, numbers = np.unique(blocks, axis=0, return_inverse=True)
    num_blocks = int(numbers.max()) + 1 if len(numbers) else 0
    if num_blocks < 3 or not x.any():
        raise ValueError(f"{num_blocks} blocks of {block_min} minutes say nothing: soak longer")
    spread = float(x @ x)
    growth = float(x @ y) / spread
    scores = np.bincount(numbers.ravel(), x * (y - growth * x))
    error = math.sqrt(float(scores @ scores) * num_blocks / (num_blocks - 1)) / spread
    return Slope(mean=float(values.mean()), per_hour=growth, error=error)


def verdict_of(record: dict[str, Any]) -> dict[str, Any]:
    """Every rule with its outcome; `passed` if all hold.

    A quantity is flat if the upper end of its interval is below the bound, leaks if the lower end
    is above it, and is undecided between the two, which does not pass.

    Raises:
        ValueError: too few counts.
    """
    old = [count for count in record["counts"] if count["age_min"] >= _WARM_UP_MIN]
    hours = np.array([count["age_min"] / 60 for count in old])
    lives = np.array([count["life"] for count in old])
    slopes = {}
    for name, bound in _BOUNDS.items():
        values = np.array([count["usage"].get(name, count.get(name)) for count in old], float)
        found = slope(hours, values, lives)
        low, high = found.interval
        allowed = bound * max(found.mean, 1.0)
        called = "flat" if high < allowed else "leaks" if low > allowed else "undecided"
        slopes[name] = {
            "mean": round(found.mean, 3),
            "per_hour": round(found.per_hour, 4),
            "interval": [round(low, 4), round(high, 4)],
            "allowed_per_hour": round(allowed, 3),
            "verdict": called,
        }
    ended = record["lives"]
    left = {
        "orphans": sum(life["orphans"] for life in ended),
        "files in shared memory": max(life["shm_left"] for life in ended),
        "temporary files": max(life["temporary_left"] for life in ended),
        "half-written files": sum(len(life["partial_left"]) for life in ended),
        "ends of its own accord": sum(life["end"] == "by itself" for life in ended),
    }
    order = record["order"]
    lost = order["lost"] + order["twice"] + order["missing_steps"]
    flat = all(each["verdict"] == "flat" for each in slopes.values())
    passed = flat and not any(left.values()) and not lost and order["num_passes"] > 0
    return {"passed": passed, "slopes": slopes, "left": left, "order": order}


def write_report(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write soak.json, soak.md and soak.png; returns the verdict."""
    verdict = verdict_of(record)
    text = json.dumps(record | {"verdict": verdict}, default=str)
    # A line for each count: small, and yet a diff shows what changed.
    text = text.replace('{"minute"', '\n{"minute"').replace('{"number"', '\n{"number"')
    (folder / "soak.json").write_text(text + "\n", encoding="utf-8")
    (folder / "soak.md").write_text("\n".join(_page(record, verdict)) + "\n", encoding="utf-8")
    _draw(record).save(folder / "soak.png", optimize=True)
    return verdict


def _page(record: dict[str, Any], verdict: dict[str, Any]) -> list[str]:
    lives, order = record["lives"], verdict["order"]
    minutes = record["counts"][-1]["minute"]
    back = sorted(life["back_s"] for life in lives[1:])
    lines = [
        "# A run of hours, ended at random moments",
        "",
        f"`{record['command']}`",
        "",
        f"{minutes:.0f} minutes, {len(lives)} starts, {order['num_steps']} steps, "
        f"{order['num_passes']} passes; {record['environment']['device']}, shared with other work. "
        f"Verdict: **{'passed' if verdict['passed'] else 'failed'}**.",
        "",
        "| quantity | mean | growth per hour | two standard errors | a leak from | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in verdict["slopes"].items():
        low, high = found["interval"]
        lines.append(
            f"| {_NAMES[name]} | {found['mean']:.1f} | {found['per_hour']:+.3f} | {low:+.3f} to "
            f"{high:+.3f} | {found['allowed_per_hour']:.2f} | {found['verdict']} |"
        )
    lines += [
        "",
        f"Counts of a life from its minute {_WARM_UP_MIN:g} on; least squares with a level for "
        f"each life, errors over blocks of {_BLOCK_MIN:g} minutes.",
        "",
        "| left behind after any end | |",
        "|---|---|",
        *(f"| {what} | {count} |" for what, count in verdict["left"].items()),
        f"| samples lost in a pass | {order['lost']} |",
        f"| samples twice in a pass | {order['twice']} |",
        f"| steps missing in the log | {order['missing_steps']} |",
        "",
        "| start | ranks | steps | ended by | exit status | s until further than before |",
        "|---|---|---|---|---|---|",
    ]
    for life in lives:
        lines.append(
            f"| {life['number']} | {life['num_ranks']} | {life['first_step']} to "
            f"{life['last_step']} | {life['end']} | {life['status']} | {life['back_s']:.1f} |"
        )
    if back:
        lines += ["", f"Time to recover: median {back[len(back) // 2]:.1f} s, most {back[-1]:.1f}."]
    return lines


def _draw(record: dict[str, Any]) -> Image.Image:
    """One strip for each quantity over the minutes; a vertical line where the run was ended."""
    counts = record["counts"]
    image = Image.new("RGB", (_SIZE[0], _SIZE[1] * len(_NAMES)), "white")
    draw = ImageDraw.Draw(image)
    most = max(count["minute"] for count in counts) or 1.0

    def across(minute: float) -> float:
        return 60 + minute / most * (_SIZE[0] - 80)

    for row, (name, title) in enumerate(_NAMES.items()):
        values = [count["usage"].get(name, count.get(name)) for count in counts]
        top, high = row * _SIZE[1] + 25, max(max(values) * 1.1, 1)
        bottom = top + _SIZE[1] - 45

        def down(value: float, bottom: int = bottom, top: int = top, high: float = high) -> float:
            return bottom - value / high * (bottom - top)

        draw.text((60, top - 18), f"{title} (0 to {high:.0f})", fill="black")
        draw.rectangle((60, top, _SIZE[0] - 20, bottom), outline=(160, 160, 160))
        previous: tuple[int, float, float] | None = None
        for count, value in zip(counts, values, strict=True):
            place = (count["life"], across(count["minute"]), down(value))
            if previous and previous[0] == place[0]:
                colour = _COLOURS[record["lives"][place[0]]["num_ranks"] > 1]
                draw.line((*previous[1:], *place[1:]), fill=colour, width=2)
            elif previous:
                draw.line((place[1], top, place[1], bottom), fill=(210, 210, 210))
            previous = place
    foot = f"minutes 0 to {most:.0f}; blue: one rank, red: several; grey line: a new start"
    draw.text((60, image.height - 16), foot, fill="black")
    return image
