"""The figures of a run as a page, and its main bars as a picture."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tessera.evaluation.page.charts import Frame, Line, axis, line_chart, share_bar
from tessera.evaluation.page.document import (
    Document,
    Headline,
    Section,
    definitions,
    table,
    write_document,
)
from tessera.evaluation.page.markup import Markup, escape, join, tag
from tessera.evaluation.page.numbers import count, percent
from tessera.tools.benchmarks.report_text import NAMES
from tessera.tools.benchmarks.sweep import by_setting

_WIDTH, _ROW, _LABEL, _MARGIN = 1100, 34, 380, 24
_INK, _QUIET, _BAR, _OWN = (32, 32, 32), (110, 110, 110), (168, 186, 196), (13, 122, 112)


def write_page(result: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        result: what the benchmark prints as JSON.
        path: the HTML file.
    """
    sections = [
        ("ladder", "What each stage costs", _ladder(result)),
        ("sides", "Against others", _sides(result)),
        ("loader", "The loader's threads", _threads(result)),
        ("storage", "Reading", definitions(_plain(result["storage"]))),
    ]
    if result["sweep"]:
        sections.append(("sweep", "Other settings", _sweep(result)))
    sections.append(("machine", "Measured on", definitions(_plain(result["environment"]))))
    document = Document(
        title="Data pipeline benchmark",
        status="with gaps" if result["left_out"] else "complete",
        is_good=not result["left_out"],
        subject=f"{count(result['num_samples'])} samples of {Path(result['data']).name}",
        summary=_summary(result),
        headlines=_headlines(result),
        sections=[Section(name=n, title=title, content=part) for n, title, part in sections],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_document(document, path)


def _summary(result: dict[str, Any]) -> str:
    scale = " to ".join(f"{each:g}" for each in result["crop_scale"])
    return (
        f"From image files to the visible patches of a batch: {result['image_size']} pixels, crops "
        f"of {scale} of the area, {result['mask']} mask. The loader's bottleneck: "
        f"{result['loader']['bottleneck']}."
    )


def _headlines(result: dict[str, Any]) -> list[Headline]:
    sides, ratios = result["sides"], result["ratios"]
    found = [
        Headline(
            label="images a second, whole loader",
            value=count(sides["loader"]["images_per_s"]["median"]),
            against=f"{result['threads']} threads",
        ),
        Headline(
            label="images a second on one core",
            value=count(sides["one_core"]["images_per_s"]["median"]),
            against=_of_limit(result),
        ),
    ]
    for name, label in (
        ("one_core_over_open_clip_transform", "times open_clip's transform"),
        ("loader_over_open_clip", "times open_clip's loader"),
    ):
        if name in ratios:
            ratio = ratios[name]
            found.append(
                Headline(
                    label=label,
                    value=f"{ratio['median']:.2f}",
                    against=f"{ratio['min']:.2f} to {ratio['max']:.2f}",
                )
            )
    return found


def _of_limit(result: dict[str, Any]) -> str:
    share = result["ladder"]["one_core"][-1]["share_of_limit"]
    return "" if share is None else f"{percent(share)} of a full decode alone"


def _ladder(result: dict[str, Any]) -> Markup:
    parts: list[Markup] = []
    for kind, title in (("one_core", "One core"), ("all_cores", f"{result['threads']} threads")):
        rungs = result["ladder"][kind]
        slowest = max(rung["us_per_image"] for rung in rungs)
        rows = [
            tag(
                "tr",
                tag("th", rung["name"] if not place else f"+ {rung['name']}", scope="row"),
                tag("td", f"{rung['us_per_image']:,.0f} \N{MICRO SIGN}s", class_="number"),
                tag("td", share_bar(rung["us_per_image"] / slowest), class_="wide"),
                tag("td", f"{rung['images_per_s']:,.0f}", class_="number"),
                tag("td", f"{rung['mb_per_s']:,.1f}", class_="number"),
                tag("td", _share(rung["share_of_limit"]), class_="number"),
            )
            for place, rung in enumerate(rungs)
        ]
        heads = ("Stage", "An image", "", "Images/s so far", "MB/s of files", "Of the limit")
        head = tag("tr", *(tag("th", text, scope="col") for text in heads))
        parts += [
            tag("h3", title),
            tag("table", tag("thead", head), tag("tbody", *rows), class_="bars"),
        ]
    note = (
        "One stage after the other, nothing ahead. The limit is a full libjpeg-turbo decode of "
        "the same files and nothing else; a crop can be decoded faster than the whole picture."
    )
    return join([*parts, tag("p", note, class_="note")])


def _share(share: float | None) -> str:
    return "" if share is None else percent(share)


def _sides(result: dict[str, Any]) -> Markup:
    fastest = max(side["images_per_s"]["median"] for side in result["sides"].values())
    rows = []
    for name, title in NAMES.items():
        if name not in result["sides"]:
            continue
        side = result["sides"][name]
        rate = side["images_per_s"]
        rows.append(
            tag(
                "tr",
                tag("th", title, scope="row"),
                tag("td", share_bar(rate["median"] / fastest), class_="wide"),
                tag("td", f"{rate['median']:,.0f}", class_="number"),
                tag("td", f"{rate['min']:,.0f} to {rate['max']:,.0f}", class_="number"),
                tag("td", f"{side['cpu_ms_per_image']['median']:.2f} ms", class_="number"),
                tag("td", f"{side['memory_bytes'] / 2**20:,.0f} MiB", class_="number"),
            )
        )
    heads = ("Side", "", "Images/s", "Range", "CPU an image", "Memory")
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    left_out = [(NAMES[name], reason) for name, reason in result["left_out"].items()]
    return join(
        [
            tag("table", tag("thead", head), tag("tbody", *rows), class_="bars"),
            tag("p", _ratios(result), class_="note"),
            tag("h3", "Left out") if left_out else None,
            definitions(left_out) if left_out else None,
        ]
    )


def _ratios(result: dict[str, Any]) -> str:
    texts = [
        f"{name.replace('_', ' ')} {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        for name, ratio in result["ratios"].items()
    ]
    return "Median of the rounds and range: " + "; ".join(texts) + "." if texts else ""


def _threads(result: dict[str, Any]) -> Markup:
    rows = [
        (
            name,
            f"{stage['num_samples']:,}",
            f"{stage['stage_bytes'] / 1e6:,.0f}",
            f"{stage['busy_s']:.2f}",
            f"{stage['input_wait_s']:.2f}",
            f"{stage['output_wait_s']:.2f}",
        )
        for name, stage in result["loader"]["stages"].items()
    ]
    heads = ("Stage", "Images", "MB out", "Busy, s", "Waited for input, s", "Waited for room, s")
    note = "One thread reads; another decodes, cuts, masks and packs. Waits are of their first and "
    return join([table(heads, rows, "scores"), tag("p", note + "last stage.", class_="note")])


def _sweep(result: dict[str, Any]) -> Markup:
    parts: list[Markup] = []
    for name, entries in by_setting(result["sweep"]).items():
        rates = [entry["images_per_s"] for entry in entries]
        rows = [
            (
                entry["value"],
                f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})",
                f"{entry['cpu_ms_per_image']['median']:.2f}",
                f"{entry['memory_bytes'] / 2**20:,.0f}",
            )
            for entry, rate in zip(entries, rates, strict=True)
        ]
        heads = (name.replace("_", " "), "Images/s", "CPU ms an image", "MiB")
        parts += [tag("h3", name.replace("_", " ")), table(heads, rows, "scores")]
        if name != "mask" and len(entries) > 1:
            values = np.array([float(entry["value"]) for entry in entries])
            medians = np.array([rate["median"] for rate in rates])
            frame = Frame(
                summary=f"Images a second against {name}",
                x=axis(float(values.min()), float(values.max())),
                y=axis(0.0, float(medians.max()) * 1.08),
                unit=name.replace("_", " "),
                height="middle",
            )
            parts.append(line_chart(frame, [Line(x=values, y=medians, look="smooth", dots=True)]))
    failed = [
        (f"{entry['setting']} {entry['value']}", entry["failed"])
        for entry in result["sweep"]
        if "failed" in entry
    ]
    return join([*parts, definitions(failed) if failed else None])


def _plain(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            escape(name.replace("_", " ")),
            f"{value:,.2f}" if isinstance(value, float) else str(value),
        )
        for name, value in values.items()
    ]


def write_bars(result: dict[str, Any], path: Path) -> None:
    """Write the rates of all sides as bars.

    Args:
        result: what the benchmark prints as JSON.
        path: the PNG file.
    """
    sides = [(title, name) for name, title in NAMES.items() if name in result["sides"]]
    image = Image.new("RGB", (_WIDTH, (len(sides) + 2) * _ROW + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)
    draw.text((_MARGIN, _MARGIN), "Images a second, median and range", _INK, font)
    fastest = max(side["images_per_s"]["max"] for side in result["sides"].values())
    room = _WIDTH - _LABEL - _MARGIN - 80

    def place(rate: float) -> float:
        return _LABEL + room * rate / fastest

    for row, (title, name) in enumerate(sides, 1):
        rate = result["sides"][name]["images_per_s"]
        top = _MARGIN + row * _ROW + 8
        is_own = name in ("one_core", "all_cores", "loader")
        draw.text((_MARGIN, top), title, _INK, font)
        bar = (_LABEL, top, place(rate["median"]), top + _ROW - 14)
        draw.rectangle(bar, _OWN if is_own else _BAR)
        middle = top + (_ROW - 14) / 2
        draw.line((place(rate["min"]), middle, place(rate["max"]), middle), _INK, 2)
        draw.text((place(rate["max"]) + 8, top), f"{rate['median']:,.0f}", _INK, font)
    foot = f"{Path(result['data']).name}, {result['image_size']} px, {result['threads']} threads, "
    foot += str(result["environment"]["device"])
    draw.text((_MARGIN, _MARGIN + (len(sides) + 1) * _ROW + 10), foot, _QUIET, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
