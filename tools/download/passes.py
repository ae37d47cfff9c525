"""A first pass and its retries, and what became of their rows, as a table to ask with SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tessera.pipeline.index.database import open_database
from tessera.tools.download.causes import Cause
from tessera.tools.download.job import JOB_FILE
from tessera.tools.download.shards import ShardBook
from tessera.tools.download.table.prepare import HOST, MEMORY
from tessera.tools.download.table.summary import load_summary

_PASS = re.compile(r"retry-(\d{2,})")
_CAUSE = f"""CASE WHEN status = 'success' THEN NULL
    WHEN split_part(error_message, ':', 1) IN ({", ".join(f"'{cause}'" for cause in Cause)})
    THEN split_part(error_message, ':', 1) ELSE '{Cause.UNKNOWN}' END"""
_COLUMNS = "row_id, url, caption, status, error_message, sha256, width, height, "
_COLUMNS += "original_width, original_height"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A first pass or one of its retries."""

    folder: Path
    book: ShardBook


def retry_folders(out: Path) -> list[Path]:
    """Folders of the retries so far, in their order; a retry begins with its table.

    Raises:
        ValueError: one between them is missing, or a table is damaged.
    """
    found = sorted(
        (int(match[1]), path)
        for path in out.iterdir()
        if (match := _PASS.fullmatch(path.name)) and load_summary(path / "table")
    )
    if [number for number, _ in found] != list(range(1, len(found) + 1)):
        names = ", ".join(path.name for _, path in found)
        raise ValueError(f"{out} holds {names}, so one is missing: put it back")
    return [path for _, path in found]


def passes_of(out: Path) -> list[Pass]:
    """The first pass and the retries that were begun, their shards looked at."""
    folders = [out, *(path for path in retry_folders(out) if (path / JOB_FILE).is_file())]
    passes = [Pass(folder=folder, book=ShardBook(folder)) for folder in folders]
    for each in passes:
        each.book.refresh()
    return passes


@contextmanager
def outcomes(passes: list[Pass]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the table `last`: the last outcome of each row, one row each.

    Its columns: pass, row_id, url, host, caption, cause (NULL: stored), error_message, sha256,
    width, height, original_width and original_height.
    """
    with open_database(memory=MEMORY, threads=0, ordered=False) as database:
        parts = []
        for number, each in enumerate(passes):
            if each.book.finished:
                database.register(f"pass{number}", each.book.metadata())
                parts.append(number)
        # A row counts as the last pass that tried it left it.
        shown = [
            f"SELECT {number} AS pass, {_COLUMNS} FROM pass{number} "  # noqa: S608 - our own names
            + "".join(f"ANTI JOIN pass{n} USING (row_id) " for n in parts if n > number)
            for number in parts
        ]
        nothing = ", ".join(f"NULL AS {name}" for name in _COLUMNS.split(", "))
        every = " UNION ALL ".join(shown) or f"SELECT 0 AS pass, {nothing} WHERE false"
        database.execute(
            f"""CREATE VIEW last AS SELECT * EXCLUDE (status, url), url::VARCHAR AS url,
                {HOST.replace("url", "url::VARCHAR", 1)} AS host, {_CAUSE} AS cause
            FROM ({every})"""  # noqa: S608
        )
        yield database
