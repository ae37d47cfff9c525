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
from tessera.tools.download.passes import outcomes, passes_of
from tessera.tools.download.table.prepare import CC12M_BYTES, CC12M_ROWS
from tessera.tools.download.table.summary import load_summary

PUBLISHED = (
    ("2021, the crawl that papers train on", 0.883),
    ("December 2022", 0.792),
    ("October 2025", 0.623),
)
"""(when, share of the 12,423,374 links of CC12M that gave a picture), as others reported it."""
_TOP_DOMAIN = r"""CASE WHEN regexp_full_match(host, '\[.*\]|[0-9.]+|0x[0-9a-f]+') THEN '(address)'
    ELSE split_part(host, '.', -1) END"""
_FAILURES = """SELECT cause, count(*) AS count, count(*) / (SELECT count(*) FROM last) AS share,
    arg_min({'row_id': row_id, 'url': url, 'message': error_message}, row_id, 5) AS examples
    FROM last WHERE cause IS NOT NULL GROUP BY cause ORDER BY count DESC, cause"""
_MESSAGES = """SELECT cause, error_message, count(*) AS num FROM last WHERE cause IS NOT NULL
    GROUP BY ALL ORDER BY num DESC, error_message"""
_SHARES = """SELECT coalesce(nullif({}, ''), '(none)') AS name, count(*) AS num_rows,
    count(*) - count(cause) AS num_stored FROM last
    GROUP BY 1 ORDER BY num_rows DESC, 1 LIMIT 20"""
_REPEATS = """FROM (SELECT sha256, count(*) AS num_rows, count(DISTINCT hash(caption)) AS
    num_captions, arg_min(url, row_id) AS url
    FROM last WHERE cause IS NULL GROUP BY sha256 HAVING num_rows > 1)"""
_PLACEHOLDERS = " WHERE num_captions > 1 ORDER BY num_rows DESC, sha256 LIMIT 20"
SIDE_EDGES = tuple(round(2 ** (quarter / 4)) for quarter in range(4 * 4, 4 * 14 + 1))
"""Edges of the histograms of the shorter side, 16 to 16,384 pixels; others count at the ends."""
_SIDES = """SELECT least({0}width, {0}height) AS side, count(*) AS num FROM last
    WHERE cause IS NULL GROUP BY 1"""
_NUM_TIMES = 120


def write_report(folder: Path, expected_rows: int | None = None) -> dict[str, Any]:
    """Count what is in the finished shards of a download and of its further passes.

    Args:
        folder: local folder of the first pass, holding job.json, table/ and perhaps retry-NN/.
            The report goes to report/ in it.
        expected_rows: rows that the source should have had; None: what an earlier report said.

    Returns:
        What report.json holds.

    Raises:
        FileNotFoundError: there is no table.
    """
    place = folder / "report"
    if expected_rows is None and (place / "report.json").is_file():
        earlier = json.loads((place / "report.json").read_text(encoding="utf-8"))
        expected_rows = earlier.get("num_rows_expected")
    report = _counted(folder, expected_rows)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_download_page(report, place / "report.html")
    return report


def _counted(folder: Path, expected_rows: int | None) -> dict[str, Any]:
    passes, table = passes_of(folder), load_summary(folder / "table")
    if table is None:
        raise FileNotFoundError(f"{folder / 'table'} holds no table")
    with outcomes(passes) as database:

        def ask(query: str) -> list[dict[str, Any]]:
            found = database.execute(query)
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

        (total,) = ask("SELECT count(*) AS tried, count(*) - count(cause) AS stored FROM last")
        failures, messages = ask(_FAILURES), ask(_MESSAGES)
        for each in failures:
            mine = [m for m in messages if m["cause"] == each["cause"]][:5]
            each["retryable"] = Cause(each["cause"]).retryable
            each["messages"] = {m["error_message"]: m["num"] for m in mine}
        found = {
            "hosts": ask(_SHARES.format("host")),
            "top_level_domains": ask(_SHARES.format(_TOP_DOMAIN)),
            "sides": {"edges": list(SIDE_EDGES)}
            | {
                name: _histogram(ask(_SIDES.format(prefix)))
                for name, prefix in (("original", "original_"), ("stored", ""))
            },
            "num_repeated": sum(each["num_rows"] for each in ask("SELECT num_rows " + _REPEATS)),
            "placeholders": ask("SELECT * " + _REPEATS + _PLACEHOLDERS),
        }
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
        "num_rows_tried": total["tried"],
        "complete": total["tried"] == table.num_rows,
        "num_stored": total["stored"],
        "share_stored": total["stored"] / max(1, total["tried"]),
        "stored_bytes": sum(state.files[0][0] for state in states),
        "train_num_samples": total["stored"],
        "published": [{"when": when, "share": share} for when, share in PUBLISHED],
        "passes": [
            {
                "folder": str(each.folder),
                "shards": each.book.job.shards,
                "num_shards": len(each.book.finished),
                "num_shards_expected": len(each.book.plan),
                "num_rows": sum(state.num_rows for state in each.book.finished.values()),
                "num_stored": sum(state.num_successes for state in each.book.finished.values()),
            }
            for each in passes
        ],
        "failures": failures,
        **found,
        "throughput": throughput([(s.start_time, s.end_time, s.num_successes) for s in states]),
        "table": {n: getattr(table, n) for n in ("format", "repairs", "oddities", "dropped")},
    }


def _histogram(counted: list[dict[str, int]]) -> list[int]:
    sides = np.clip([each["side"] for each in counted], SIDE_EDGES[0], SIDE_EDGES[-1])
    weights = [each["num"] for each in counted]
    return np.histogram(sides, bins=SIDE_EDGES, weights=weights)[0].astype(int).tolist()


def throughput(spans: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Pictures a second over the time that something ran; pauses between runs are left out.

    Args:
        spans: start, end and pictures of each shard.

    Returns:
        `seconds` (time that something ran), `edges_s` and `pictures_per_s` between them.
    """
    pause = reach = min((start for start, _, _ in spans), default=0.0)
    moved = []
    for start, end, count in sorted(spans):
        pause += max(0.0, start - reach)
        reach = max(reach, end)
        moved.append((start - pause, end - pause, count))
    edges = np.linspace(0, reach - pause, min(_NUM_TIMES, 4 * len(spans)) + 1 if spans else 0)
    rate = np.zeros(max(0, len(edges) - 1))
    for start, end, count in moved:
        overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        rate += np.maximum(overlap, 0) * count / max(end - start, 1e-9)
    rate /= np.maximum(np.diff(edges), 1e-9)
    return {
        "seconds": reach - pause,
        "edges_s": edges.tolist(),
        "pictures_per_s": rate.tolist(),
    }
