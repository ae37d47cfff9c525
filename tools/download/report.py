"""What a download brought: counted over its shards, written as report.json and report.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tessera.pipeline.durable import write_text
from tessera.report.download import write_download_page
from tessera.tools.download.causes import Cause
from tessera.tools.download.outcomes import Pass, outcomes, passes_of
from tessera.tools.download.table.prepare import CC12M_BYTES, CC12M_ROWS
from tessera.tools.download.table.summary import load_summary

PUBLISHED = (
    ("2021, the crawl that papers train on", 0.883),
    ("December 2022", 0.792),
    ("October 2025", 0.623),
)
"""(when, share of the 12,423,374 links of CC12M that gave a picture), as others reported it."""
SIDE_EDGES = tuple(round(2 ** (quarter / 4)) for quarter in range(4 * 4, 4 * 14 + 1))
"""Edges of the histograms of the shorter side, 16 to 16,384 pixels; others count at the ends."""
_NUM_TIMES = 120
_TOP_DOMAIN = r"""CASE WHEN regexp_full_match(host, '\[.*\]|[0-9.]+|0x[0-9a-f]+') THEN '(address)'
    ELSE split_part(host, '.', -1) END"""
_FAILURES = """SELECT cause, count(*) AS num,
    arg_min({'row_id': row_id, 'url': url, 'message': error_message}, row_id, 5)
    FROM last WHERE cause IS NOT NULL GROUP BY cause ORDER BY num DESC, cause"""
_MESSAGES = """SELECT error_message, count(*) AS num FROM last WHERE cause = ?
    GROUP BY 1 ORDER BY num DESC, 1 LIMIT 5"""
_SHARES = """SELECT coalesce(nullif({name}, ''), '(none)') AS name, count(*) AS num,
    count(*) - count(cause) AS stored FROM last GROUP BY 1 ORDER BY num DESC, 1 LIMIT 20"""
_REPEATS = """FROM (SELECT sha256, count(*) AS num_rows, arg_min(url, row_id) AS url,
    count(DISTINCT hash(caption)) AS num_captions
    FROM last WHERE cause IS NULL GROUP BY sha256 HAVING num_rows > 1)"""
_SIDES = "SELECT least({0}width, {0}height), count(*) FROM last WHERE cause IS NULL GROUP BY 1"


def write_report(folder: Path, expected_rows: int | None = None) -> dict[str, Any]:
    """Count what is in the finished shards of a download and of its further passes.

    Args:
        folder: local folder of the first pass, holding job.json, table/ and perhaps retry-NN/.
            The report goes to report/ in it.
        expected_rows: rows that the source should have had; None: what an earlier report said.

    Returns:
        What report.json holds.
    """
    place = folder / "report"
    if expected_rows is None and (place / "report.json").is_file():
        earlier = json.loads((place / "report.json").read_text(encoding="utf-8"))
        expected_rows = earlier.get("num_rows_expected")
    report = make_report(folder, expected_rows)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_download_page(report, place / "report.html")
    return report


def make_report(folder: Path, expected_rows: int | None = None) -> dict[str, Any]:
    """Return the content of report.json; see `write_report`."""
    passes, table = passes_of(folder), load_summary(folder / "table")
    if table is None:
        raise FileNotFoundError(f"{folder / 'table'} holds no table")
    with outcomes(passes) as database:

        def ask(query: str, *values: object) -> list[Any]:
            return database.execute(query, values).fetchall()

        tried, stored = ask("SELECT count(*), count(*) - count(cause) FROM last")[0]
        failures = [
            {
                "cause": cause,
                "retryable": Cause(cause).retryable,
                "count": num,
                "share": num / tried,
                "messages": dict(ask(_MESSAGES, cause)),
                "examples": examples,
            }
            for cause, num, examples in ask(_FAILURES)
        ]
        shares = {
            title: [
                {"name": name, "num_rows": num, "num_stored": good}
                for name, num, good in ask(_SHARES.format(name=what))
            ]
            for title, what in (("hosts", "host"), ("top_level_domains", _TOP_DOMAIN))
        }
        sides = {
            name: _histogram(ask(_SIDES.format(of)))
            for name, of in (("original", "original_"), ("stored", ""))
        }
        num_repeated = ask("SELECT coalesce(sum(num_rows), 0)::BIGINT " + _REPEATS)[0][0]
        most = " WHERE num_captions > 1 ORDER BY num_rows DESC, sha256 LIMIT 20"
        repeats = ask("SELECT sha256, num_rows, num_captions, url " + _REPEATS + most)
    states = [state for each in passes for state in each.book.finished.values()]
    whole = table.source_bytes == CC12M_BYTES or expected_rows == CC12M_ROWS
    return {
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
        "folder": str(folder),
        "source": table.source,
        "source_sha256": table.source_sha256,
        "is_cc12m": whole or table.num_source_rows == CC12M_ROWS,
        "num_rows_expected": expected_rows,
        "num_rows_of_source": table.num_source_rows,
        "num_rows": table.num_rows,
        "num_rows_tried": tried,
        "complete": tried == table.num_rows,
        "num_stored": stored,
        "share_stored": stored / max(1, tried),
        "stored_bytes": sum(state.tar_bytes for state in states),
        "train_num_samples": stored,
        "published": [{"when": when, "share": share} for when, share in PUBLISHED],
        "passes": [_about(each) for each in passes],
        "failures": failures,
        **shares,
        "sides": {"edges": list(SIDE_EDGES), **sides},
        "throughput": throughput(
            [(state.start_time, state.end_time, state.num_successes) for state in states]
        ),
        "table": {n: getattr(table, n) for n in ("format", "repairs", "oddities", "dropped")},
        "num_repeated": num_repeated,
        "placeholders": [
            dict(zip(("sha256", "num_rows", "num_captions", "url"), row, strict=True))
            for row in repeats
        ],
    }


def _about(each: Pass) -> dict[str, Any]:
    states = each.book.finished.values()
    return {
        "folder": str(each.folder),
        "shards": each.book.job.shards,
        "num_shards": len(states),
        "num_shards_expected": len(each.book.plan),
        "num_rows": sum(state.num_rows for state in states),
        "num_stored": sum(state.num_successes for state in states),
        "image_size": each.book.job.image_size,
    }


def _histogram(counted: list[tuple[int, int]]) -> list[int]:
    values = np.clip([side for side, _ in counted], SIDE_EDGES[0], SIDE_EDGES[-1])
    weights = [num for _, num in counted]
    return np.histogram(values, bins=SIDE_EDGES, weights=weights)[0].astype(int).tolist()


def throughput(spans: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Pictures a second over the time that something ran; pauses between runs are left out.

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
