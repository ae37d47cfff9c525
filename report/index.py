"""The page of an index: what the data set holds, and what of it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tessera.pipeline.index import IndexReport, open_index
from tessera.pipeline.reader import ShardReader
from tessera.report.charts import Chart, histogram
from tessera.report.numbers import count, duration, percent, size
from tessera.report.page import Headline, now, write
from tessera.report.pictures import thumbnail

_MOST_SHOWN = 50
"""Damaged shards named on the page."""
_NUM_PAIRS = 24
"""Pairs shown, at even distances over the data set."""
_CONTEXT = 75
"""Tokens that a context of 77 holds besides start and end."""
_KINDS = {
    "text": "captions",
    "sha256": "image files (by SHA-256)",
    "dhash": "pictures (by difference hash)",
}


def write_index_report(report: IndexReport, path: Path) -> None:
    """Write the page.

    Args:
        report: what making the index found; the index is opened for some of its pairs.
        path: the HTML file.
    """
    num_seen = report.num_samples + report.num_rejected
    mean, percentile, longest = report.tokens_per_text
    write(
        path,
        "index",
        title=report.index_dir.name,
        created=now(),
        r=report,
        num_seen=num_seen,
        headlines=[
            Headline(
                count(report.num_samples),
                "usable samples",
                f"{percent(report.num_samples / num_seen)} of {count(num_seen)} found",
            ),
            Headline(
                count(report.num_texts),
                "captions",
                f"{report.num_texts / report.num_samples:.2f} a sample",
            ),
            Headline(f"{mean:.1f}", "tokens a caption", f"99% at most {percentile}, {longest} max"),
            Headline(
                size(report.image_bytes),
                "of image files",
                f"{size(report.image_bytes / report.num_samples)} each",
            ),
        ],
        pairs=list(_pairs(report.index_dir)),
        problems=[(Path(shard).name, text) for shard, text in report.shard_problems.items()],
        most_shown=_MOST_SHOWN,
        charts_of=[*_picture_charts(report), _token_chart(report)],
        repeated=[(_KINDS[name], name, found) for name, found in report.repetitions.items()],
        making=[
            ("Folder", str(report.index_dir)),
            ("Fingerprint", report.fingerprint),
            ("Shards", count(report.num_shards)),
            (
                "Shards read",
                f"{count(report.num_scanned_shards)}; "
                f"{count(report.num_shards - report.num_scanned_shards)} had not changed",
            ),
            ("Time", duration(report.seconds)),
            ("Speed", f"{count(report.samples_per_s)} samples a second"),
        ],
    )


def _pairs(index_dir: Path) -> Iterator[dict[str, Any]]:
    """Some pairs of the data: picture, captions and key."""
    index = open_index(index_dir)
    ids = np.unique(np.linspace(0, index.num_samples - 1, _NUM_PAIRS).round().astype(np.int64))
    rows, offsets = index.captions().rows(ids)
    reader = ShardReader(index, 4)
    files = reader.read(ids)
    reader.close()
    for place, (key, data) in enumerate(zip(index.keys(ids.tolist()), files, strict=True)):
        own = rows[offsets[place] : offsets[place + 1]]
        try:
            picture = thumbnail(data) if isinstance(data, bytes) else None
        except OSError:
            picture = None
        texts = index.captions().texts(own[:1])
        yield {
            "key": key,
            "picture": picture,
            "caption": texts[0] if texts else "",
            "num_more": max(0, len(own) - 1),
        }


def _picture_charts(report: IndexReport) -> Iterator[Chart]:
    low_w, high_w, low_h, high_h = report.image_size_range
    texts = {
        "shorter_side": (
            "Shorter side, pixels",
            f"Widths {low_w} to {high_w}, heights {low_h} to {high_h} pixels.",
        ),
        "aspect_ratio": ("Longer over shorter side", "1 is a square."),
        "file_kib": ("Image file, KiB", "As stored in the shards."),
    }
    for name, (title, note) in texts.items():
        found = report.histograms[name]
        yield histogram(name, title, note, found.edges, found.counts, log=True)


def _token_chart(report: IndexReport) -> Chart:
    counts = np.array(report.num_tokens)
    beyond = percent(int(counts[_CONTEXT + 1 :].sum()) / max(report.num_texts, 1))
    note = (
        f"Without start and end. {beyond} of the captions are longer than the {_CONTEXT} that a "
        "context of 77 holds and lose their tail there."
    )
    if report.num_empty_texts:
        note += f" {count(report.num_empty_texts)} empty ones were left out of samples with others."
    edges = np.arange(len(counts) + 1) - 0.5
    return histogram("tokens", "Tokens of a caption", note, edges, counts)
