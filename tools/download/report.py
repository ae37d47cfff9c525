"""What a download brought: counted over its shards, written as report.json and report.html."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from pipeline.durable import write_text
from tools.download.causes import Cause, classify
from tools.download.finished import JOB_FILE, ShardBook
from tools.download.table.prepare import SUMMARY_FILE
from tools.download.table.spread import host_of

PUBLISHED = (
    ("2021, the crawl that papers train on", 0.883),
    ("December 2022", 0.792),
    ("October 2025", 0.623),
)
"""(when, share of the 12,423,374 links of CC12M that gave a picture), as others reported it."""
SIDE_EDGES = tuple(round(2 ** (quarter / 4)) for quarter in range(4 * 4, 4 * 14 + 1))
"""Edges of the histograms of the shorter side, 16 to 16,384 pixels; others count at the ends."""
pc: Any = pyarrow.compute  # its functions are made when it is imported, so no checker knows them
_COLUMNS = (
    *("row_id", "url", "caption", "status", "error_message", "sha256"),
    *("width", "height", "original_width", "original_height"),
)
_NUM_EXAMPLES = 5
_NUM_MESSAGES = 5
_NUM_HOSTS = 20
_NUM_PLACEHOLDERS = 20
_NUM_TIMES = 120
_ADDRESS = re.compile(r"\[.*\]|[0-9.]+|0x[0-9a-f]+")


@dataclass(kw_only=True, slots=True)
class Failure:
    """Rows that failed for one cause."""

    count: int = 0
    """How many."""
    messages: Counter[str] = field(default_factory=Counter)
    """How often each message was given."""
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    """(row id, URL, message) of the first few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placeholder:
    """One picture that came for many links."""

    sha256: str
    """Of the bytes as they were downloaded, in hex."""
    num_rows: int
    """Rows that got it."""
    num_captions: int
    """Different captions among these."""
    url: str
    """Link of the first of them."""


class Survey:
    """Counts over the rows of a download, shard by shard; memory grows by 28 bytes a picture."""

    def __init__(self) -> None:
        self.passes: list[dict[str, Any]] = []
        self.failures: dict[str, Failure] = defaultdict(Failure)
        self.hosts: Counter[str] = Counter()
        self.stored_by_host: Counter[str] = Counter()
        self.original_sides = np.zeros(len(SIDE_EDGES) - 1, np.int64)
        self.stored_sides = np.zeros(len(SIDE_EDGES) - 1, np.int64)
        self.spans: list[tuple[float, float, int]] = []
        self.num_rows = self.num_stored = self.stored_bytes = 0
        self._books: list[ShardBook] = []
        self._prints: list[NDArray[np.uint64]] = []
        self._captions: list[NDArray[np.uint64]] = []
        self._origins: list[NDArray[np.int32]] = []

    def add_pass(self, folder: Path, retried: NDArray[np.int64]) -> None:
        """Count the shards of one pass.

        Args:
            folder: Holds its job.json.
            retried: Rows that a later pass tried again; their failure here does not count.
        """
        book = ShardBook(folder)
        book.refresh()
        self._books.append(book)
        stored_before, rows = self.num_stored, 0
        for number, state in book.finished.items():
            self.stored_bytes += state.tar_bytes
            self.spans.append((state.start_time, state.end_time, state.num_successes))
            rows += state.num_rows
            self._add_shard(book.outcomes(number, _COLUMNS), number, retried)
        self.passes.append(
            {
                "folder": str(folder),
                "shards": book.job.shards,
                "num_shards": len(book.finished),
                "num_shards_expected": len(book.plan),
                "num_rows": rows,
                "num_stored": self.num_stored - stored_before,
                "image_size": book.job.image_size,
            }
        )

    def placeholders(self) -> tuple[int, list[Placeholder]]:
        """Pictures that came more than once: (rows with one of these, the most frequent)."""
        if not self._prints:
            return 0, []
        prints = np.concatenate(self._prints)
        captions, origins = np.concatenate(self._captions), np.concatenate(self._origins)
        order = np.argsort(prints, kind="stable")
        values, starts, counts = np.unique(prints[order], return_index=True, return_counts=True)
        repeated = np.flatnonzero(counts > 1)
        most = repeated[np.argsort(-counts[repeated], kind="stable")][:_NUM_PLACEHOLDERS]
        found = []
        for index in most:
            rows = order[starts[index] : starts[index] + counts[index]]
            num_captions = len(np.unique(captions[rows]))
            if num_captions > 1:
                book, number = divmod(int(origins[rows[0]]), 1_000_000)
                sha256, url = self._look_up(book, number, int(values[index]))
                found.append(
                    Placeholder(
                        sha256=sha256, num_rows=len(rows), num_captions=num_captions, url=url
                    )
                )
        return int(counts[repeated].sum()), found

    def _add_shard(self, rows: pa.Table, number: int, retried: NDArray[np.int64]) -> None:
        success = pc.equal(rows["status"], "success")
        again = pa.array(np.isin(rows["row_id"].to_numpy(), retried))
        failed = rows.filter(pc.and_not(pc.invert(success), again))
        stored = rows.filter(success)
        self.num_rows += len(stored) + len(failed)
        self.num_stored += len(stored)
        for url, counter in ((stored["url"], self.stored_by_host), (failed["url"], self.hosts)):
            for entry in pc.value_counts(host_of(url.combine_chunks())).to_pylist():
                counter[entry["values"] or ""] += entry["counts"]
        self._add_failures(failed)
        self.original_sides += _side_counts(stored["original_width"], stored["original_height"])
        self.stored_sides += _side_counts(stored["width"], stored["height"])
        prints = [int(text[:16], 16) for text in stored["sha256"].to_pylist()]
        self._prints.append(np.array(prints, np.uint64))
        texts = [_print_of(caption or "") for caption in stored["caption"].to_pylist()]
        self._captions.append(np.array(texts, np.uint64))
        origin = (len(self._books) - 1) * 1_000_000 + number
        self._origins.append(np.full(len(prints), origin, np.int32))

    def _add_failures(self, failed: pa.Table) -> None:
        rows = failed.select(["row_id", "url", "status", "error_message"]).to_pylist()
        for row in rows:
            message = row["error_message"] or ""
            cause = classify(row["status"], message) or Cause.UNKNOWN
            failure = self.failures[str(cause)]
            failure.count += 1
            failure.messages[message] += 1
            if len(failure.examples) < _NUM_EXAMPLES:
                failure.examples.append((row["row_id"], row["url"], message))

    def _look_up(self, book: int, number: int, value: int) -> tuple[str, str]:
        rows = self._books[book].outcomes(number, ("sha256", "url")).to_pylist()
        return next(
            (row["sha256"], row["url"])
            for row in rows
            if row["sha256"] and int(row["sha256"][:16], 16) == value
        )


def write_report(folder: Path, expected_rows: int | None = None) -> dict[str, Any]:
    """Count what is in the finished shards of a download and of its further passes.

    Args:
        folder: Local folder of the first pass, holding job.json, table/ and perhaps retry-NN/.
            The report goes to report/ in it.
        expected_rows: Rows that the source should have had; None: what an earlier report said.

    Returns:
        What report.json holds.
    """
    from tools.download.report_page import render

    place = folder / "report"
    if expected_rows is None and (place / "report.json").is_file():
        earlier = json.loads((place / "report.json").read_text(encoding="utf-8"))
        expected_rows = earlier.get("num_rows_expected")
    report = make_report(folder, expected_rows)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(place / "report.html", render(report))
    return report


def make_report(folder: Path, expected_rows: int | None = None) -> dict[str, Any]:
    """Return the content of report.json; see `write_report`."""
    folders = [folder, *sorted(p for p in folder.glob("retry-*") if (p / JOB_FILE).is_file())]
    tried = [_row_ids(each) for each in folders]
    survey = Survey()
    for index, each in enumerate(folders):
        survey.add_pass(each, np.concatenate([np.zeros(0, np.int64), *tried[index + 1 :]]))
    table = json.loads((folder / "table" / SUMMARY_FILE).read_text(encoding="utf-8"))
    num_repeated, placeholders = survey.placeholders()
    survey.hosts.update(survey.stored_by_host)
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(folder),
        "source": table["source"],
        "source_sha256": table["source_sha256"],
        "num_rows_expected": expected_rows,
        "num_rows_of_source": table["num_source_rows"],
        "num_rows": table["num_rows"],
        "num_rows_tried": survey.num_rows,
        "complete": survey.num_rows == table["num_rows"],
        "num_stored": survey.num_stored,
        "share_stored": survey.num_stored / max(1, survey.num_rows),
        "stored_bytes": survey.stored_bytes,
        "train_num_samples": survey.num_stored,
        "published": [{"when": when, "share": share} for when, share in PUBLISHED],
        "passes": survey.passes,
        "failures": _failures(survey),
        "hosts": _shares(survey.hosts, survey.stored_by_host),
        "top_level_domains": _top_level_domains(survey),
        "sides": {
            "edges": list(SIDE_EDGES),
            "original": survey.original_sides.tolist(),
            "stored": survey.stored_sides.tolist(),
        },
        "throughput": throughput(survey.spans),
        "table": {name: table[name] for name in ("format", "repairs", "oddities", "dropped")},
        "num_repeated": num_repeated,
        "placeholders": [asdict(each) for each in placeholders],
    }


def throughput(spans: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Pictures a second over the time that something ran; pauses between runs are left out.

    Args:
        spans: (start, end, pictures) of each shard, in seconds since the epoch.

    Returns:
        `seconds` (time that something ran), `edges_s` and `pictures_per_s` between them.
    """
    if not spans:
        return {"seconds": 0.0, "edges_s": [], "pictures_per_s": []}
    order = sorted(spans)
    pause, reach = 0.0, order[0][0]
    moved = []
    for start, end, count in order:
        pause += max(0.0, start - reach)
        reach = max(reach, end)
        moved.append((start - pause - order[0][0], end - pause - order[0][0], count))
    seconds = reach - pause - order[0][0]
    edges = np.linspace(0, max(seconds, 1e-9), min(_NUM_TIMES, 4 * len(spans)) + 1)
    rate = np.zeros(len(edges) - 1)
    for start, end, count in moved:
        overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        rate += np.maximum(overlap, 0) * count / max(end - start, 1e-9)
    return {
        "seconds": seconds,
        "edges_s": edges.tolist(),
        "pictures_per_s": (rate / np.diff(edges)).tolist(),
    }


def _row_ids(folder: Path) -> NDArray[np.int64]:
    book = ShardBook(folder)
    book.refresh()
    parts = [book.outcomes(number, ("row_id",))["row_id"].to_numpy() for number in book.finished]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _failures(survey: Survey) -> list[dict[str, Any]]:
    ordered = sorted(survey.failures.items(), key=lambda item: -item[1].count)
    return [
        {
            "cause": cause,
            "retryable": Cause(cause).retryable,
            "count": failure.count,
            "share": failure.count / max(1, survey.num_rows),
            "messages": dict(failure.messages.most_common(_NUM_MESSAGES)),
            "examples": [
                {"row_id": row_id, "url": url, "message": message}
                for row_id, url, message in failure.examples
            ],
        }
        for cause, failure in ordered
    ]


def _shares(tried: Counter[str], stored: Counter[str]) -> list[dict[str, Any]]:
    return [
        {"name": name or "(none)", "num_rows": count, "num_stored": stored[name]}
        for name, count in tried.most_common(_NUM_HOSTS)
    ]


def _top_level_domains(survey: Survey) -> list[dict[str, Any]]:
    tried: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for host, count in survey.hosts.items():
        domain = "(address)" if _ADDRESS.fullmatch(host) else host.rpartition(".")[2]
        tried[domain] += count
        stored[domain] += survey.stored_by_host[host]
    return _shares(tried, stored)


def _side_counts(widths: pa.ChunkedArray, heights: pa.ChunkedArray) -> NDArray[np.int64]:
    shorter = np.minimum(widths.to_numpy(), heights.to_numpy())
    return np.histogram(np.clip(shorter, SIDE_EDGES[0], SIDE_EDGES[-1]), bins=SIDE_EDGES)[0]


def _print_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
