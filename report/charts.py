"""Charts by matplotlib, as SVG that lies in the page and takes its colours and its font.

matplotlib draws with stand-ins for the colours of style.css, which are replaced by its variables,
so that one picture is right in the light and in the dark. Charts are drawn at the width of a phone,
so that their words can be read there.

Shape legend: L points of a line, K bins.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from tessera.report.numbers import count, decimal, percent, short_count
from tessera.report.page import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers: TypeAlias = NDArray[Any]
"""Any real-valued array."""

_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "tessera", "text.parse_math": False}
_SIZE = (6.2, 3.5)
"""Inches of 72 units: with letters of 14 units, 11 pixels on a phone."""
_LETTERS = 14
_NUM_LOOKS = 8
_VARIABLES = ("ink", "quiet", "rule", "accent", "second", *(f"s{n}" for n in range(_NUM_LOOKS)))
_STAND_IN = {name: f"#fe00{number:02x}" for number, name in enumerate(_VARIABLES)}
_TOO_LARGE = 1e100
"""Nothing that a chart could show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart; it breaks where a value is not finite."""

    x: Numbers
    """[L] along the horizontal axis."""
    y: Numbers
    """[L] along the vertical axis."""
    colour: str = "accent"
    """Variable of style.css."""
    width: float = 2.0
    """In units of the chart."""
    faint: bool = False
    """Whether it lies behind the others."""
    dashes: bool = False
    """Whether it is dashed."""
    dots: bool = False
    """Whether every point is marked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure of a page: a drawing, or what there is in the place of one."""

    title: str
    """Heading."""
    note: str
    """A sentence below; it says to readers who cannot see the drawing what it shows."""
    svg: Markup | None = None
    """The drawing; None where there is nothing to draw."""
    value: str = ""
    """The one number that a drawing would show."""


def series_line(number: int, x: Numbers, y: Numbers, *, dots: bool) -> Line:
    """Return one of several lines; after the last colour, dashes tell them apart."""
    dashes = number // _NUM_LOOKS % 2 == 1
    return Line(x=x, y=y, colour=f"s{number % _NUM_LOOKS}", width=1.75, dashes=dashes, dots=dots)


def line_chart(
    name: str,
    title: str,
    note: str,
    lines: Sequence[Line],
    *,
    y_range: tuple[float, float],
    unit: str = "",
    share: bool = False,
    reference: tuple[float, str] | None = None,
) -> Chart:
    """Return a chart of lines, or the number where they are a single point.

    Args:
        name: of this chart alone on its page.
        title: heading.
        note: a sentence below.
        lines: the last on top.
        y_range: values at the bottom and at the top.
        unit: what the horizontal axis counts.
        share: whether values are fractions of 1, shown in percent.
        reference: (value, label) of a dashed line across.
    """
    lines = [_shown(line) for line in lines]
    spoken = percent if share else decimal
    points = {
        (x, y)
        for line in lines
        for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)
        if math.isfinite(x) and math.isfinite(y)
    }
    if not points:
        return Chart(title=title, note=note, value="not measured")
    if len(points) == 1:
        ((_, only),) = points
        return Chart(title=title, note=note, value=spoken(only))

    def draw(axes: Axes) -> None:
        for line in lines:
            style = (0, (4, 2.5)) if line.dashes else "-"
            axes.plot(
                line.x, line.y, color=_STAND_IN[line.colour], linewidth=line.width,
                linestyle=style, alpha=0.38 if line.faint else None,
                marker="o" if line.dots else None, markersize=5,
            )  # fmt: skip
        axes.set_xlim(0, max(x for x, _ in points) or 1)
        axes.set_ylim(*_wide(*y_range))
        axes.set_xlabel(unit)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
        if reference is not None and axes.get_ylim()[0] <= reference[0] <= axes.get_ylim()[1]:
            axes.axhline(reference[0], color=_STAND_IN["quiet"], linewidth=1, linestyle=(0, (2, 3)))
            axes.annotate(
                reference[1], (1, reference[0]), (0, 3), ha="right", size=_LETTERS,
                xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                color=_STAND_IN["quiet"],
            )  # fmt: skip

    return Chart(title=title, note=note, svg=_drawn(name, f"{title}. {note}", draw))


def histogram(
    name: str, title: str, note: str, edges: Numbers, counts: Numbers, *, log: bool = False
) -> Chart:
    """Return bars of counts between edges; a sentence where only one bin holds anything.

    Args:
        name: of this chart alone on its page.
        title: heading.
        note: a sentence below.
        edges: [K+1] ascending, positive if `log`; empty bins at both ends are left out.
        counts: [K] not negative.
        log: space the edges by their ratio instead of their difference.
    """
    filled = np.flatnonzero(counts)
    if not len(filled):
        return Chart(title=title, note="There is nothing to show.")
    first, last = int(filled[0]), int(filled[-1]) + 1
    edges, counts = np.asarray(edges[first : last + 1], float), np.asarray(counts[first:last])
    if len(counts) == 1:
        low, high = (f"{edge:.4g}" for edge in edges)
        return Chart(title=title, note=f"All {count(counts[0])} lie from {low} to {high}. {note}")

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=_STAND_IN["accent"], alpha=0.85)
        axes.set_ylim(0, counts.max() * 1.08)
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(_powers(edges))
            axes.xaxis.set_minor_locator(_nothing())
            axes.xaxis.set_major_formatter(lambda value, _: short_count(round(value, 2)))
        axes.set_xlim(edges[0], edges[-1])

    return Chart(title=title, note=note, svg=_drawn(name, f"{title}. {note}", draw))


def _powers(edges: Numbers) -> Any:
    from matplotlib.ticker import FixedLocator

    low, high = np.log2(edges[[0, -1]])
    step = 0.5 if high - low < 3 else max(1, round((high - low) / 6))
    places = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return FixedLocator((2.0**places).tolist())


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _shown(line: Line) -> Line:
    x, y = (np.array(each, dtype=np.float64) for each in (line.x, line.y))
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(x) | (np.abs(x) > _TOO_LARGE) | ~np.isfinite(y)
        y[bad | (np.abs(y) > _TOO_LARGE)] = np.nan
    x[bad] = np.nan
    return Line(
        x=x, y=y, colour=line.colour, width=line.width, faint=line.faint, dashes=line.dashes,
        dots=line.dots,
    )  # fmt: skip


def _wide(low: float, high: float) -> tuple[float, float]:
    if not (math.isfinite(low) and math.isfinite(high) and abs(high) + abs(low) < _TOO_LARGE):
        return 0.0, 1.0
    if high > low:
        return low, high
    spread = max(abs(low) * 0.1, 1e-12) if low else 1.0
    return low - spread, high + spread


def _drawn(name: str, summary: str, draw: Callable[[Axes], None]) -> Markup:
    """What matplotlib draws, in the page's colours and font, under ids of its own."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.locator_params(nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
        axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.grid(axis="y", color=_STAND_IN["rule"], linewidth=1)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=_LETTERS, labelcolor=_STAND_IN["quiet"])
        axes.xaxis.label.set(size=_LETTERS, color=_STAND_IN["quiet"])
        draw(axes)
        figure.savefig(buffer, format="svg", transparent=True, metadata=_no_metadata())
    return _for_page(buffer.getvalue(), name, summary)


def _tick(value: float) -> str:
    if abs(value) >= 1000:
        return short_count(value)
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _no_metadata() -> dict[str, None]:
    return dict.fromkeys(("Creator", "Date", "Format", "Type"))


def _for_page(text: str, name: str, summary: str) -> Markup:
    body = text[text.index("<svg") : text.rindex("</svg>")]
    box = re.search(r'viewBox="[^"]*"', body)
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    used = set(re.findall(r"#([\w.-]+)(?=[\")])", body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(xlink:href="|url\()#(?=[mp])', rf"\1#{name}-", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    for variable, colour in _STAND_IN.items():
        body = body.replace(colour, f"var(--{variable})")
    head = f'<svg class="chart" {box[0] if box else ""} role="img" aria-label="{escape(summary)}">'
    # Safe as it stands: matplotlib escapes every text that it writes.
    return Markup(clean(f"{head}{body}</svg>"))  # noqa: S704
