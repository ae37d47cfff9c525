"""The page of a download: what came, what did not and why, in one file that loads nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.page.charts import Frame, Line, axis, line_chart, share_bar
from evaluation.page.document import Document, Headline, Section, render_document
from evaluation.page.histogram import histogram_figure
from evaluation.page.markup import Markup, join, shorten, tag
from evaluation.page.numbers import count, duration, percent, short_count

_MOST_URL = 110


def render(report: dict[str, Any]) -> str:
    """Return the page for the content of report.json."""
    sections = (
        ("share", "How much is still there", _published(report)),
        ("failures", "What failed, and why", _failures(report)),
        ("hosts", "Where from", _hosts(report)),
        ("sizes", "Sizes", _sizes(report)),
        ("speed", "Speed", _speed(report)),
        ("repeats", "The same picture for many links", _repeats(report)),
        ("table", "The table", _table(report)),
        ("use", "How to train on it", _use(report)),
    )
    return render_document(
        Document(
            title="Download report",
            status="complete" if report["complete"] else "not complete",
            is_good=report["complete"],
            subject=report["source"],
            summary=_summary(report),
            headlines=_headlines(report),
            sections=[Section(name=n, title=title, content=part) for n, title, part in sections],
            created=report["written"],
        )
    )


def _summary(report: dict[str, Any]) -> str:
    text = (
        f"{count(report['num_stored'])} pictures with their captions came from "
        f"{count(report['num_rows_tried'])} links."
    )
    if report["failures"]:
        most = report["failures"][0]
        text += f" The most frequent failure is {most['cause']} ({count(most['count'])} links)."
    if not report["complete"]:
        left = report["num_rows"] - report["num_rows_tried"]
        text += f" {count(left)} were not tried yet: the same command goes on."
    return text


def _headlines(report: dict[str, Any]) -> list[Headline]:
    rows = f"{count(report['num_rows_of_source'])} in the source"
    if report["num_rows_expected"] is not None:
        rows += f", {count(report['num_rows_expected'])} expected"
    bytes_each = report["stored_bytes"] / max(1, report["num_stored"])
    numbers = (
        ("pictures with caption", count(report["num_stored"]), ""),
        ("of the links tried", percent(report["share_stored"]), "CC12M in October 2025: 62.3%"),
        ("links tried", count(report["num_rows_tried"]), rows),
        ("on disk", f"{short_count(report['stored_bytes'])}B", f"{short_count(bytes_each)}B each"),
    )
    return [Headline(label=label, value=value, against=beside) for label, value, beside in numbers]


def _published(report: dict[str, Any]) -> Markup:
    rows = [("this download", report["share_stored"])]
    rows += [(f"CC12M, {each['when']}", each["share"]) for each in report["published"]]
    bars = [(name, percent(share), share_bar(share)) for name, share in rows]
    note = (
        "Links die, about 1% of CC12M a month. Who trains on fewer pairs than a paper did cannot "
        "expect its figures: name the number of pairs beside every result, or take the 2021 crawl "
        "(--source mirror)."
    )
    return join([_rows(("", "stored", ""), bars), tag("p", note, class_="note")])


def _failures(report: dict[str, Any]) -> Markup:
    if not report["failures"]:
        return tag("p", "Nothing failed.", class_="none")
    most = report["failures"][0]["count"]
    rows = [
        (
            join([each["cause"], tag("small", " retryable") if each["retryable"] else None]),
            count(each["count"]),
            percent(each["share"]),
            share_bar(each["count"] / most),
        )
        for each in report["failures"]
    ]
    retryable = sum(each["count"] for each in report["failures"] if each["retryable"])
    note = (
        f"{count(retryable)} rows failed for causes that may pass: tools/retry_failed.py tries "
        "them again."
    )
    examples = [
        tag("details", tag("summary", f"{each['cause']}: messages and examples"), _examples(each))
        for each in report["failures"]
    ]
    return join(
        [_rows(("cause", "rows", "share", ""), rows), tag("p", note, class_="note"), *examples]
    )


def _examples(failure: dict[str, Any]) -> Markup:
    messages = [(shorten(m, _MOST_URL), count(n)) for m, n in failure["messages"].items()]
    examples = [
        (str(each["row_id"]), shorten(each["url"] or "", _MOST_URL)) for each in failure["examples"]
    ]
    return join(
        [_rows(("message", "rows"), messages), _rows(("row", "link"), examples, numbers=(0,))]
    )


def _hosts(report: dict[str, Any]) -> Markup:
    parts = []
    for title, name in (("Hosts", "hosts"), ("Top-level domains", "top_level_domains")):
        rows = [
            (
                shorten(each["name"], 40),
                count(each["num_rows"]),
                percent(each["num_stored"] / each["num_rows"]),
            )
            for each in report[name]
        ]
        parts.append(
            tag("figure", tag("h3", title), _rows((f"{len(rows)} largest", "rows", "stored"), rows))
        )
    return tag("div", *parts, class_="pair")


def _sizes(report: dict[str, Any]) -> Markup:
    edges = np.array(report["sides"]["edges"])
    figures = [
        histogram_figure(title, note, edges, np.array(report["sides"][name]), log=True)
        for title, note, name in (
            ("Originals", "Shorter side of the pictures as they came, in pixels.", "original"),
            ("As stored", "Shorter side of the pictures in the shards, in pixels.", "stored"),
        )
    ]
    return tag("div", *figures, class_="pair")


def _speed(report: dict[str, Any]) -> Markup:
    speed = report["throughput"]
    if not speed["pictures_per_s"]:
        return tag("p", "No shard is finished.", class_="none")
    edges, rate = np.array(speed["edges_s"]), np.array(speed["pictures_per_s"])
    unit, divisor = ("h", 3600.0) if edges[-1] > 7200 else ("min", 60.0)
    middle = (edges[1:] + edges[:-1]) / 2 / divisor
    frame = Frame(
        summary="pictures stored a second, over the time that the download ran",
        x=axis(0, float(edges[-1]) / divisor),
        y=axis(0, max(float(rate.max()), 1e-9)),
        unit=unit,
        height="middle",
    )
    mean = report["num_stored"] / max(speed["seconds"], 1e-9)
    note = (
        f"{duration(speed['seconds'])} at work, {short_count(mean)} pictures stored a second. "
        "Pauses between runs are left out."
    )
    chart = line_chart(frame, [Line(x=middle, y=rate, look="smooth")])
    return join([tag("h3", "Pictures stored a second"), chart, tag("p", note, class_="note")])


def _repeats(report: dict[str, Any]) -> Markup:
    note = (
        f"{count(report['num_repeated'])} rows got a picture that another row got too, byte for "
        "byte. One picture with many captions is mostly a server's placeholder: leave it out with "
        "tools/select_samples.py."
    )
    rows = [
        (
            shorten(each["url"], 80),
            tag("span", each["sha256"][:16], class_="key"),
            count(each["num_rows"]),
            count(each["num_captions"]),
        )
        for each in report["placeholders"]
    ]
    table = _rows(("first link", "sha256", "rows", "captions"), rows, numbers=(2, 3))
    return join([table if rows else None, tag("p", note, class_="note")])


def _table(report: dict[str, Any]) -> Markup:
    table = report["table"]
    rows = [
        (name.replace("_", " "), what, count(number))
        for what, counts in (
            ("repaired", table["repairs"]),
            ("kept as it is", table["oddities"]),
            ("left out", table["dropped"]),
        )
        for name, number in counts.items()
    ]
    found = _rows(("finding", "outcome", "rows"), rows, numbers=(2,))
    return join(
        [
            tag("p", f"Read as {table['format']}.", class_="note"),
            found if rows else tag("p", "Nothing had to be repaired.", class_="none"),
        ]
    )


def _use(report: dict[str, Any]) -> Markup:
    rows = [
        (
            each["shards"],
            f"{count(each['num_shards'])} of {count(each['num_shards_expected'])}",
            count(each["num_rows"]),
            count(each["num_stored"]),
        )
        for each in report["passes"]
    ]
    shards = " ".join(each["shards"] for each in report["passes"] if each["num_stored"])
    command = f"python tools/index_shards.py {shards} --out INDEX"
    note = f"train_num_samples (as open_clip calls it): {report['train_num_samples']}"
    table = _rows(("shards", "done", "rows", "stored"), rows, numbers=(1, 2, 3))
    return join([table, tag("p", note, class_="note"), tag("pre", command)])


def _rows(
    titles: tuple[str, ...],
    rows: list[tuple[str, ...]],
    numbers: tuple[int, ...] | None = None,
) -> Markup:
    """A table; `numbers` says which columns are set to the right, by default the plain middle."""
    if numbers is None:
        numbers = tuple(index for index in range(1, len(titles)) if titles[index])
    looks = [
        "number" if index in numbers else ("wide" if index and not title else None)
        for index, title in enumerate(titles)
    ]
    head = tag("tr", *(tag("th", t, class_=look) for t, look in zip(titles, looks, strict=True)))
    body = [
        tag("tr", *(tag("td", cell, class_=look) for cell, look in zip(row, looks, strict=True)))
        for row in rows
    ]
    return tag("table", tag("thead", head), tag("tbody", *body), class_="bars")
