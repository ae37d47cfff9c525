"""Questions about tables of any size, answered by DuckDB in bounded memory.

Rows stream through it some at a time; what it must hold beyond its limit goes to a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.database import open_database
from tessera.pipeline.index.scan import ShardScan, usable

_ROWS = 1 << 17
_NUM_FREQUENT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts between edges; what lies outside is counted in the first or last bin."""

    edges: NDArray[np.float64]
    """[K+1] ascending."""
    counts: NDArray[np.int64]
    """[K]."""

    def to_json(self) -> dict[str, list[float]]:
        """Edges and counts."""
        return {"edges": np.round(self.edges, 4).tolist(), "counts": self.counts.tolist()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """How often the values of one kind repeat."""

    num_values: int
    """Values looked at."""
    num_distinct: int
    """Different ones among them."""
    most_frequent: list[tuple[str, int]]
    """The most frequent repeated values and how often they occur, the most frequent first."""


class Queries:
    """A database of nothing but the rows that a query is given."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database

    def ask(self, sql: str, rows: pa.RecordBatchReader | pa.RecordBatch) -> list[tuple[Any, ...]]:
        """The answer of a query over the table `rows`."""
        if isinstance(rows, pa.RecordBatch):
            rows = pa.RecordBatchReader.from_batches(rows.schema, _pieces(rows))
        self._database.register("rows", rows)
        try:
            return self._database.execute(sql).fetchall()
        finally:
            self._database.unregister("rows")

    def histogram(
        self, rows: pa.RecordBatch, value: str, low: float, high: float, per_octave: int
    ) -> Histogram:
        """Counts of an expression over `rows` in bins of equal ratios from `low` to `high`."""
        num_bins = round(np.log2(high / low) * per_octave)
        counts = np.zeros(num_bins, np.int64)
        place = f"floor(log2({value} / {float(low)}) * {per_octave})"
        sql = f"SELECT greatest(0, least({num_bins - 1}, {place}))::INT, count(*) FROM rows GROUP BY 1"  # noqa: E501, S608
        for number, count in self.ask(sql, rows):
            counts[number] = count
        edges = low * 2.0 ** (np.arange(num_bins + 1) / per_octave)
        return Histogram(edges=edges, counts=counts)

    def repetition(self, values: pa.Array, named_by: pa.Array) -> Repetition:
        """Count equal values, told apart by a hash of 64 bits.

        Args:
            values: [K] of one kind.
            named_by: [K] what stands for a frequent value, at the row where it first occurs.
        """
        rows = pa.record_batch([values], ["value"])
        numbered = pa.schema([("row", pa.int64()), rows.schema.field(0)])
        frequent = f"max({{'times': times, 'first': -first}}, {_NUM_FREQUENT})"
        sql = f"""
            SELECT count(*), {frequent} FILTER (WHERE times > 1) FROM (
                SELECT count(*) AS times, min(row) AS first FROM rows GROUP BY hash(value))
        """  # noqa: S608
        stream = pa.RecordBatchReader.from_batches(numbered, _numbered(rows, numbered))
        (num_distinct, found), *_ = self.ask(sql, stream)
        shown = [(named_by[-each["first"]].as_py(), each["times"]) for each in found or ()]
        return Repetition(num_values=len(values), num_distinct=num_distinct, most_frequent=shown)

    def repeated_keys(self, scans: Sequence[ShardScan]) -> dict[int, dict[int, int]]:
        """Rows whose key an earlier row of their source has: scan to row to scan of that.

        Rows are those of the scans' tables. Hashes find the candidates in 8 bytes a sample; the
        keys themselves decide.
        """
        kind = "CREATE OR REPLACE TEMP TABLE suspects AS SELECT hash(source, key) AS mark FROM rows"
        self.ask(f"{kind} GROUP BY mark HAVING count(*) > 1", _keys(scans))
        repeated: dict[int, dict[int, int]] = {}
        if not self._database.execute("SELECT mark FROM suspects LIMIT 1").fetchall():
            return repeated
        sql = """
            SELECT scan, row, first FROM (
                SELECT scan, row, first_value(scan) OVER same AS first,
                    row_number() OVER same AS place
                FROM rows WHERE hash(source, key) IN (FROM suspects)
                WINDOW same AS (PARTITION BY source, key ORDER BY scan, row))
            WHERE place > 1 ORDER BY scan, row
        """
        for scan, row, first in self.ask(sql, _keys(scans)):
            repeated.setdefault(scan, {})[row] = first
        return repeated


@contextmanager
def open_queries(spill: Path) -> Iterator[Queries]:
    """A database that may spill to a folder, for as long as the block runs."""
    with open_database(spill, ordered=False) as database:
        yield Queries(database)


def _keys(scans: Sequence[ShardScan]) -> pa.RecordBatchReader:
    """Keys of usable samples, with their place and source."""
    schema = pa.schema(
        [("scan", pa.int32()), ("row", pa.int32()), ("source", pa.string()),
         ("key", pa.large_string())]
    )  # fmt: skip

    def batches() -> Iterator[pa.RecordBatch]:
        for number, scan in enumerate(scans):
            if not scan.record.num_samples:
                continue
            table = scan.table(["key", "reason"])
            rows = np.flatnonzero(usable(table)).astype(np.int32)
            place = pa.array(np.full(len(rows), number, np.int32))
            source = pa.array([scan.record.source] * len(rows), pa.string())
            keys = table.column("key").take(pa.array(rows))
            yield pa.RecordBatch.from_arrays([place, pa.array(rows), source, keys], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _pieces(rows: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
    return (rows.slice(start, _ROWS) for start in range(0, rows.num_rows, _ROWS))


def _numbered(rows: pa.RecordBatch, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    first = 0
    for piece in _pieces(rows):
        numbers = pa.array(np.arange(first, first + piece.num_rows))
        yield pa.RecordBatch.from_arrays([numbers, *piece.columns], schema=schema)
        first += piece.num_rows
