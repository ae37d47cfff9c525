"""The figures of tools/benchmark_data.py as a page, and its main bars as a picture.

The record's JSON is taken as it is; sides that are not known here are shown by their own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tessera.report.charts import Chart, Line, line_chart
from tessera.report.numbers import count, percent
from tessera.report.page import Headline, now, write

NAMES = {
    "full_decode": "libjpeg-turbo full decode alone, one core",
    "nvjpeg": "nvJPEG full decode alone, GPU",
    "one_core": "ours, one core",
    "open_clip_transform": "open_clip's train transform, one core",
    "all_cores": "ours, all cores, one step at a time",
    "loader": "our loader",
    "open_clip": "open_clip's loader (webdataset)",
    "torchvision": "webdataset + DataLoader + torchvision",
    "dali_reader": "DALI's webdataset reader",
}
"""What the sides are called, in the order of the tables."""
_OURS = ("one_core", "all_cores", "loader")
_LIMITS = ("full_decode", "nvjpeg")
_ACCENT, _OTHER, _INK = "#0d7a70", "#a8bac4", "#202020"


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        result: what the benchmark prints as JSON.
        path: the HTML file.
    """
    scale = " to ".join(f"{each:g}" for each in result["crop_scale"])
    write(
        path,
        "benchmark",
        title="Data pipeline benchmark",
        created=now(),
        r=result,
        summary=f"From image files to the visible patches of a batch: {result['image_size']} "
        f"pixels, crops of {scale} of the area, {result['mask']} mask. The loader's bottleneck: "
        f"{result['loader']['bottleneck']}.",
        headlines=list(_headlines(result)),
        data_name=Path(result["data"]).name,
        ladders=[
            (title, result["ladder"][kind], max(g["us_per_image"] for g in result["ladder"][kind]))
            for kind, title in (
                ("one_core", "One core"),
                ("all_cores", f"{result['threads']} threads"),
            )
        ],
        groups=_groups(result),
        fastest=max(side["images_per_s"]["median"] for side in result["sides"].values()),
        left_out=[(NAMES.get(n, n), reason) for n, reason in result["left_out"].items()],
        sweeps=list(_sweeps(result)),
        failed=[
            (f"{entry['setting']} {entry['value']}", entry["failed"])
            for entry in result["sweep"]
            if "failed" in entry
        ],
        storage=_plain(result["storage"]),
        environment=_plain(result["environment"]),
    )


def _headlines(result: Mapping[str, Any]) -> Iterator[Headline]:
    sides, ratios = result["sides"], result["ratios"]
    share = result["ladder"]["one_core"][-1]["share_of_limit"]
    yield Headline(
        count(sides["loader"]["images_per_s"]["median"]),
        "images a second, whole loader",
        f"{result['threads']} threads",
    )
    yield Headline(
        count(sides["one_core"]["images_per_s"]["median"]),
        "images a second on one core",
        "" if share is None else f"{percent(share)} of a full decode alone",
    )
    for name, label in (
        ("one_core_over_open_clip_transform", "times open_clip's transform"),
        ("loader_over_open_clip", "times open_clip's loader"),
    ):
        if name in ratios:
            each = ratios[name]
            spread = f"{each['min']:.2f} to {each['max']:.2f}"
            yield Headline(f"{each['median']:.2f}", label, spread)


def _groups(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Sides by whose they are: (title, [(name, figures)])."""
    names: list[str] = [*NAMES, *(name for name in result["sides"] if name not in NAMES)]
    sides = {name: result["sides"][name] for name in names if name in result["sides"]}
    groups = {
        "Ours": _OURS,
        "Theirs": [name for name in sides if name not in (*_OURS, *_LIMITS)],
        "A full decode and nothing else": _LIMITS,
    }
    return [
        (title, [(NAMES.get(name) or name, sides[name]) for name in own if name in sides])
        for title, own in groups.items()
        if any(name in sides for name in own)
    ]


def _sweeps(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], Chart | None]]:
    """(setting, its entries, a chart where the values are numbers)."""
    found: dict[str, list[Any]] = {}
    for entry in result["sweep"]:
        if "failed" not in entry:
            found.setdefault(entry["setting"], []).append(entry)
    for setting, entries in found.items():
        name = setting.replace("_", " ")
        chart = None
        if setting != "mask" and len(entries) > 1:
            x = np.array([float(entry["value"]) for entry in entries])
            y = np.array([entry["images_per_s"]["median"] for entry in entries])
            chart = line_chart(
                f"sweep-{setting}", f"Images a second against {name}", "Medians of the rounds.",
                [Line(x=x, y=y, dots=True)], y_range=(0, 1.08 * float(y.max())), unit=name,
            )  # fmt: skip
        yield name, entries, chart


def _plain(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), f"{value:,.2f}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    ]


def write_bars(result: Mapping[str, Any], path: Path) -> None:
    """Write the rates of all sides as bars.

    Args:
        result: what the benchmark prints as JSON.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    ours = {NAMES[name] for name in _OURS}
    sides = [side for _, found in _groups(result) for side in found][::-1]
    rates = [figures["images_per_s"] for _, figures in sides]
    medians = np.array([rate["median"] for rate in rates])
    spread = [medians - [r["min"] for r in rates], np.array([r["max"] for r in rates]) - medians]
    figure = Figure(figsize=(11, 1.2 + 0.4 * len(sides)), layout="constrained")
    axes = figure.add_subplot()
    colours = [_ACCENT if name in ours else _OTHER for name, _ in sides]
    names = [name for name, _ in sides]
    bars = axes.barh(names, medians, xerr=spread, color=colours, ecolor=_INK)
    axes.bar_label(bars, [f" {median:,.0f}" for median in medians])
    axes.set_title("Images a second, median and range", loc="left")
    axes.set_xlabel(
        f"{Path(result['data']).name}, {result['image_size']} px, {result['threads']} threads, "
        f"{result['environment']['device']}"
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
