"""The page of a download, out of what report.json holds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tessera.report.charts import Chart, Line, histogram, line_chart
from tessera.report.numbers import count, duration, percent, shorten, size
from tessera.report.page import Headline, write

_SIDES = (
    ("original", "Originals", "Shorter side of the pictures as they came, pixels."),
    ("stored", "As stored", "Shorter side of the pictures in the shards, pixels."),
)


def write_download_page(report: Mapping[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        report: content of report.json.
        path: the HTML file.
    """
    counts = report["table"]
    kinds = (("repaired", "repairs"), ("kept as it is", "oddities"), ("left out", "dropped"))
    shards = [each["shards"] for each in report["passes"] if each["num_stored"]]
    places = shlex.join(map(str, shards))
    published = [(f"CC12M, {each['when']}", each["share"]) for each in report["published"]]
    decay = [("this download", report["share_stored"]), *published]
    write(
        path,
        "download",
        title="Download report",
        created=report["written"],
        r=report,
        headlines=list(_headlines(report)),
        retryable=sum(each["count"] for each in report["failures"] if each["retryable"]),
        messages={
            each["cause"]: [
                (shorten(str(text), 110), number / each["count"], count(number))
                for text, number in each["messages"].items()
            ]
            for each in report["failures"]
        },
        decay=[(name, share, percent(share)) for name, share in decay],
        sizes=[
            histogram(
                name,
                title,
                note,
                np.array(report["sides"]["edges"], float),
                np.array(report["sides"][name]),
                log=True,
            )
            for name, title, note in _SIDES
        ],
        speed=_speed(report),
        oddities=[
            (name.replace("_", " "), what, count(number))
            for what, field in kinds
            for name, number in counts[field].items()
        ],
        command=f"python tools/index_shards.py {places} --out INDEX",
    )


def _headlines(report: Mapping[str, Any]) -> Iterator[Headline]:
    stored, expected = report["num_stored"], report["num_rows_expected"]
    yield Headline(count(stored), "pictures with caption")
    against = "CC12M in October 2025: 62.3%" if report["is_cc12m"] else ""
    yield Headline(percent(report["share_stored"]), "of the links tried", against)
    of_source = f"{count(report['num_rows_of_source'])} in the source"
    if expected is not None:
        of_source += f", {count(expected)} expected"
    yield Headline(count(report["num_rows_tried"]), "links tried", of_source)
    each = size(report["stored_bytes"] / max(1, stored))
    yield Headline(size(report["stored_bytes"]), "on disk", f"{each} each")


def _speed(report: Mapping[str, Any]) -> Chart | None:
    found = report["throughput"]
    rates = np.array(found["pictures_per_s"], float)
    if not len(rates):
        return None
    edges = np.array(found["edges_s"], float)
    mean = report["num_stored"] / max(found["seconds"], 1e-9)
    note = (
        f"{duration(found['seconds'])} at work, {mean:.1f} pictures stored a second on average, "
        f"{rates.max():.1f} at most. Pauses between runs are left out."
    )
    unit, factor = ("hours", 3600.0) if edges[-1] > 7200 else ("minutes", 60.0)
    line = Line(x=(edges[:-1] + edges[1:]) / 2 / factor, y=rates)
    title = "Pictures stored a second"
    return line_chart("speed", title, note, [line], y_range=(0, 1.08 * rates.max()), unit=unit)
