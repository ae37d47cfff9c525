"""A histogram with its heading and a sentence, on an axis in equal or in doubling steps."""

from __future__ import annotations

import math

import numpy as np

from tessera.evaluation.page.charts import Axis, Frame, Numbers, axis, bar_chart
from tessera.evaluation.page.markup import Markup, tag
from tessera.evaluation.page.numbers import short_count


def histogram_figure(
    title: str, note: str, edges: Numbers, counts: Numbers, *, log: bool = False
) -> Markup:
    """Return a figure of counts between edges; empty bins at both ends are left out.

    Args:
        title: Heading.
        note: A sentence below.
        edges: [K+1] ascending, positive if `log`.
        counts: [K] not negative.
        log: Space the edges by their ratio instead of their difference.
    """
    filled = np.flatnonzero(counts)
    if not len(filled):
        return tag("figure", tag("h3", title), tag("p", "Nothing to show.", class_="none"))
    first, last = int(filled[0]), int(filled[-1]) + 1
    edges, counts = edges[first : last + 1], counts[first:last]
    along = _log_axis(edges) if log else axis(float(edges[0]), float(edges[-1]))
    frame = Frame(
        summary=f"{title}. {note}",
        x=along,
        y=axis(0.0, float(counts.max()) * 1.08, most=4),
        height="middle",
    )
    places = np.log2(edges) if log else edges
    return tag(
        "figure",
        tag("h3", title),
        bar_chart(frame, places, counts),
        tag("figcaption", note),
    )


def _log_axis(edges: Numbers) -> Axis:
    """Labels at powers of two, or halves of them where there are few."""
    low, high = math.log2(edges[0]), math.log2(edges[-1])
    step = 1.0 if high - low >= 2 else 0.5
    powers = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
    labels = [short_count(round(2.0**power, 2)) for power in powers]
    return Axis(low=low, high=high, ticks=powers.tolist(), labels=labels)
