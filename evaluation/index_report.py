"""The report of an index: what the data set holds, and what of it cannot be used."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tessera.evaluation.page.document import (
    Document,
    Headline,
    Section,
    definitions,
    table,
    write_document,
)
from tessera.evaluation.page.histogram import histogram_figure
from tessera.evaluation.page.markup import Markup, join, shorten, tag
from tessera.evaluation.page.numbers import count, duration, percent
from tessera.pipeline.index import IndexReport

_MOST_SHOWN = 50
"""Damaged shards named on the page."""
_KINDS = {
    "text": "captions",
    "sha256": "image files (by SHA-256)",
    "dhash": "pictures (by difference hash)",
}


def write_index_report(report: IndexReport, path: Path) -> None:
    """Write the page.

    Args:
        report: what making the index found.
        path: the HTML file.
    """
    num_seen = report.num_samples + report.num_rejected
    good = not report.num_rejected and not report.shard_problems
    document = Document(
        title=report.index_dir.name,
        status="all usable" if good else "usable with gaps",
        is_good=good,
        subject=f"index, shards: {count(report.num_shards)}",
        summary=_summary(report, num_seen),
        headlines=[
            Headline(
                label="usable samples",
                value=count(report.num_samples),
                against=f"{percent(report.num_samples / num_seen)} of {count(num_seen)} found",
            ),
            Headline(
                label="captions",
                value=count(report.num_texts),
                against=f"{report.num_texts / report.num_samples:.2f} a sample",
            ),
            Headline(
                label="tokens a caption",
                value=f"{report.tokens_per_text[0]:.1f}",
                against=f"99% at most {report.tokens_per_text[1]}, longest "
                f"{report.tokens_per_text[2]}",
            ),
            Headline(
                label="of image files",
                value=_size(report.image_bytes),
                against=f"{_size(report.image_bytes / report.num_samples)} each",
            ),
        ],
        sections=[
            Section(name="rejected", title="What cannot be used", content=_rejected(report)),
            Section(name="pictures", title="Pictures", content=_pictures(report)),
            Section(name="captions", title="Captions", content=_captions(report)),
            Section(name="repeated", title="What is repeated", content=_repeated(report)),
            Section(name="making", title="How it was made", content=_making(report)),
        ],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_document(document, path)


def _size(num_bytes: float) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def _summary(report: IndexReport, num_seen: int) -> str:
    parts = [f"{count(report.num_samples)} of {count(num_seen)} samples can be trained on."]
    if report.rejections:
        reason, most = next(iter(report.rejections.items()))
        parts.append(f"Most often missed for: {reason.replace('_', ' ')} ({count(most)}).")
    if report.shard_problems:
        parts.append(f"{count(len(report.shard_problems))} shards are not whole.")
    return " ".join(parts)


def _rejected(report: IndexReport) -> Markup:
    if not report.rejections and not report.shard_problems:
        nothing = tag("p", "Nothing: every sample of every shard is usable.", class_="none")
        return join([nothing, *(tag("p", hint, class_="note") for hint in report.hints)])
    num_seen = report.num_samples + report.num_rejected
    rows = []
    for reason, number in report.rejections.items():
        first = report.examples[reason][0]
        place = f"{Path(first.shard).name}: {first.member or first.key}: {first.detail}"
        cells = (reason, count(number), percent(number / num_seen), shorten(place, 160))
        rows.append(cells)
    problems = [(Path(shard).name, problem) for shard, problem in report.shard_problems.items()]
    note = "All of them, with shard, member and reason, are in rejected.arrow."
    return join(
        [
            table(("Reason", "Samples", "Share", "For example"), rows, "scores") if rows else None,
            tag("p", note, class_="note") if rows else None,
            *(tag("p", hint, class_="note") for hint in report.hints),
            tag("h3", "Shards that are not whole") if problems else None,
            definitions(problems[:_MOST_SHOWN]) if problems else None,
            tag("p", f"and {count(len(problems) - _MOST_SHOWN)} more", class_="note")
            if len(problems) > _MOST_SHOWN
            else None,
        ]
    )


def _pictures(report: IndexReport) -> Markup:
    low_w, high_w, low_h, high_h = report.image_size_range
    notes = {
        "shorter_side": (
            "Shorter side, pixels",
            f"Widths {low_w} to {high_w}, heights {low_h} to {high_h} pixels.",
        ),
        "aspect_ratio": ("Longer over shorter side", "1 is a square."),
        "file_kib": ("Image file, KiB", "As stored in the shards."),
    }
    return join(
        histogram_figure(
            title, note, report.histograms[name].edges, report.histograms[name].counts, log=True
        )
        for name, (title, note) in notes.items()
    )


def _captions(report: IndexReport) -> Markup:
    counts = np.array(report.num_tokens)
    beyond = int(counts[76:].sum())
    note = (
        f"Without start and end. {percent(beyond / max(report.num_texts, 1))} of the captions are "
        "longer than the 75 that a context of 77 holds and lose their tail there."
    )
    edges = np.arange(len(counts) + 1) - 0.5
    empty = None
    if report.num_empty_texts:
        text = f"{count(report.num_empty_texts)} empty ones were left out of samples with others."
        empty = tag("p", text, class_="note")
    return join([histogram_figure("Tokens of a caption", note, edges, counts), empty])


def _repeated(report: IndexReport) -> Markup:
    parts: list[Markup] = []
    for name, found in report.repetitions.items():
        kind = _KINDS[name]
        share = 1 - found.num_distinct / max(found.num_values, 1)
        text = (
            f"{count(found.num_distinct)} different {kind} among {count(found.num_values)}: "
            f"{percent(share)} repeat an earlier one."
        )
        parts.append(tag("p", text))
        head = "Caption" if name == "text" else "First key"
        rows = [(shorten(shown, 120), count(number)) for shown, number in found.most_frequent]
        if rows:
            parts.append(table((head, "Times"), rows, "scores"))
    return join(parts)


def _making(report: IndexReport) -> Markup:
    unchanged = report.num_shards - report.num_scanned_shards
    facts = [
        ("Folder", str(report.index_dir)),
        ("Fingerprint", report.fingerprint),
        ("Shards", count(report.num_shards)),
        ("Shards read", f"{count(report.num_scanned_shards)}; {count(unchanged)} had not changed"),
        ("Time", duration(report.seconds)),
        ("Speed", f"{count(report.samples_per_s)} samples a second"),
    ]
    return definitions(facts)
