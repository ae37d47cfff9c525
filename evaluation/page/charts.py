"""Charts as inline SVG that stretches to the page while its text, which is HTML, keeps its size.

An SVG scaled as a whole has unreadable labels on a phone, so only lines and bars are drawn in the
stretched picture (strokes do not scale); ticks and values are placed beside it in percent.

Shape legend: L points of a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.evaluation.page.markup import Markup, escape, join, tag
from tessera.evaluation.page.numbers import tick_labels, ticks

Numbers: TypeAlias = NDArray[Any]
"""Any real-valued array."""

_SIZE = 1000
_NUM_COLOURS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One direction of a chart."""

    low: float
    """Value at the left or bottom edge."""
    high: float
    """Value at the right or top edge; above `low`."""
    ticks: Sequence[float]
    """Values that carry a label."""
    labels: Sequence[str]
    """Their labels."""

    def place(self, values: Numbers | Sequence[float]) -> Numbers:
        """Return where values lie between the edges, 0 .. 1, not cut off."""
        return (np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart; it breaks where a value is not finite."""

    x: Numbers
    """[L] along the horizontal axis."""
    y: Numbers
    """[L] along the vertical axis."""
    look: str
    """CSS class: "raw", "smooth", "second", or that of `series_look`."""
    dots: bool = False
    """Whether every point is marked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What surrounds the lines of a chart."""

    summary: str
    """What the chart shows, in a sentence, for readers who cannot see it."""
    x: Axis
    """Horizontal axis."""
    y: Axis
    """Vertical axis."""
    last: tuple[float, str] | None = None
    """(value, label) written at the right edge."""
    reference: tuple[float, str] | None = None
    """(value, label) of a dashed line across."""
    unit: str = ""
    """What the horizontal axis counts, written at its end."""
    height: str = "tall"
    """CSS class: "tall", "middle" or "low"."""


def axis(low: float, high: float, *, margin: float = 0.0, most: int = 5) -> Axis:
    """Return an axis over low .. high with round ticks, longer by `margin` of it at both ends."""
    if not high > low:
        spread = max(abs(low) * 0.1, 1e-12) if low else 1.0
        low, high = low - spread, high + spread
    wider = margin * (high - low)
    low, high = low - wider, high + wider
    values = ticks(low, high, most)
    return Axis(low=low, high=high, ticks=values, labels=tick_labels(values))


def line_chart(frame: Frame, lines: Sequence[Line], hover: Sequence[str] = ()) -> Markup:
    """Return a chart of lines.

    Args:
        frame: Axes and labels.
        lines: Drawn in order, the last on top.
        hover: Texts of equally wide vertical strips, left to right, shown where the pointer rests.
    """
    drawn = [tag("path", class_=line.look, d=_path(frame, line)) for line in lines]
    dots = [
        tag("path", class_=f"dots {line.look}", d=_dots(frame, line))
        for line in lines
        if line.dots or len(line.x) == 1
    ]
    return _plot(frame, join([*drawn, *dots, *_strips(hover)]))


def bar_chart(frame: Frame, edges: Numbers, heights: Numbers) -> Markup:
    """Return a histogram: bar i stands between edges[i] and edges[i + 1]."""
    sides = frame.x.place(edges) * _SIZE
    tops = frame.y.place(heights) * _SIZE
    bars = [
        tag(
            "rect",
            tag("title", f"{int(number):,}"),
            x=f"{left:.1f}",
            width=f"{right - left:.1f}",
            y=f"{_SIZE - top:.1f}",
            height=f"{top:.1f}",
        )
        for left, right, top, number in zip(sides[:-1], sides[1:], tops, heights, strict=True)
        if number > 0
    ]
    return _plot(frame, tag("g", *bars, class_="columns"))


def share_bar(share: float, mark: float | None = None) -> Markup:
    """Return a horizontal bar filled to `share` (0 .. 1), with a tick at `mark`."""
    inner = tag("i", style=f"width:{100 * _within(share):.2f}%")
    tick = None
    if mark is not None and math.isfinite(mark):
        tick = tag("b", style=f"left:{100 * _within(mark):.2f}%")
    return tag("span", inner, tick, class_="bar", aria_hidden="true")


def interval_bar(low: float, middle: float, high: float, reach: float, *, clear: bool) -> Markup:
    """Return an interval around a value on a line from -reach to reach with a tick at zero.

    Args:
        low: Lower end.
        middle: The value.
        high: Upper end.
        reach: Value at the right edge; what lies beyond is cut off.
        clear: Whether to colour it.
    """
    left, place, right = (_within((value / reach + 1) / 2) for value in (low, middle, high))
    return tag(
        "span",
        tag("b", style="left:50%"),
        tag("i", style=f"left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%"),
        tag("u", style=f"left:{100 * place:.2f}%"),
        class_="interval clear" if clear else "interval",
        aria_hidden="true",
    )


def series_look(number: int) -> str:
    """Return the CSS class of one of several lines; behind the last colour, dashes tell them apart.

    Args:
        number: Place of the line, counted from 0.
    """
    dashed = " dashed" if number // _NUM_COLOURS % 2 else ""
    return f"series s{number % _NUM_COLOURS}{dashed}"


def legend(names: Sequence[str]) -> Markup:
    """Return the names of several lines, each beside its colour."""
    items = [
        tag("li", tag("i", class_=series_look(number)), escape(name))
        for number, name in enumerate(names)
    ]
    return tag("ul", *items, class_="legend")


def _within(share: float) -> float:
    return min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0


def _points(frame: Frame, line: Line) -> tuple[Numbers, Numbers]:
    # What leaves the plot runs along its edge: cutting the picture would cut dots in half there.
    x = frame.x.place(line.x) * _SIZE
    with np.errstate(invalid="ignore", over="ignore"):
        y = _SIZE - np.clip(frame.y.place(line.y), 0, 1) * _SIZE
    return x, np.where(np.isfinite(line.y), y, np.nan)


def _path(frame: Frame, line: Line) -> str:
    commands: list[str] = []
    pen = "M"
    for x, y in zip(*_points(frame, line), strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        commands.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(commands)


def _dots(frame: Frame, line: Line) -> str:
    # A stroke of no length with round ends stays a circle however the picture is stretched.
    points = zip(*_points(frame, line), strict=True)
    return "".join(
        f"M{x:.1f} {y:.1f}h.01" for x, y in points if math.isfinite(x) and math.isfinite(y)
    )


def _strips(texts: Sequence[str]) -> list[Markup]:
    width = _SIZE / max(len(texts), 1)
    return [
        tag(
            "rect",
            tag("title", text),
            class_="hover",
            x=f"{index * width:.2f}",
            y="0",
            width=f"{width:.2f}",
            height=str(_SIZE),
        )
        for index, text in enumerate(texts)
    ]


def _across(frame: Frame, value: float, look: str) -> Markup:
    y = f"{_SIZE - float(frame.y.place([value])[0]) * _SIZE:.1f}"
    return tag("line", class_=look, x1="0", x2=str(_SIZE), y1=y, y2=y)


def _plot(frame: Frame, drawing: Markup) -> Markup:
    grid = [_across(frame, value, "grid") for value in frame.y.ticks]
    labels = [
        *_labels("y", "bottom", frame.y, frame.y.ticks, frame.y.labels),
        *_labels("x", "left", frame.x, frame.x.ticks, frame.x.labels),
    ]
    if frame.reference is not None and frame.y.low <= frame.reference[0] <= frame.y.high:
        grid.append(_across(frame, frame.reference[0], "reference"))
        labels += _labels("note", "bottom", frame.y, [frame.reference[0]], [frame.reference[1]])
    if frame.last is not None and math.isfinite(frame.last[0]):
        value = min(max(frame.last[0], frame.y.low), frame.y.high)
        labels += _labels("last", "bottom", frame.y, [value], [frame.last[1]])
    if frame.unit:
        labels.append(tag("span", frame.unit, class_="unit"))
    picture = tag(
        "svg",
        *grid,
        drawing,
        viewBox=f"0 0 {_SIZE} {_SIZE}",
        preserveAspectRatio="none",
        role="img",
        aria_label=frame.summary,
    )
    return tag("div", picture, *labels, class_=f"plot {frame.height}")


def _labels(
    look: str, side: str, along: Axis, values: Sequence[float], texts: Sequence[str]
) -> list[Markup]:
    return [
        tag("span", escape(text), class_=look, style=f"{side}:{100 * place:.2f}%")
        for place, text in zip(along.place(values), texts, strict=True)
    ]
