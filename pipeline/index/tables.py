"""SQL over an index: its samples, their first texts and a joined table as one DuckDB relation.

| column | of each sample |
|---|---|
| key, shard, size, label | key, file name of the shard, bytes of the image file, class |
| source, source_key | data set that its shard is of; `SOURCE:KEY`, if there are several |
| width, height, shortest, longest, pixels, aspect | of the picture; aspect = longest / shortest |
| num_captions, text | texts in the caption source, and the first of them |
| min_caption_length, max_caption_length | characters of its shortest and longest text |
| min_num_tokens, max_num_tokens | token ids of its shortest and longest text |
| domain | host of `url`, lower case, without `www.` |

and whatever `columns/` of the index and a joined table hold. A missing value (NaN, the empty text,
a sample without a label) is NULL. Functions beside DuckDB's own: matches(text, pattern),
startswith(text, start), endswith(text, end), missing(value).

Rows stream through DuckDB some at a time, with the columns that a query names and no others, so
that memory does not grow with the index; what DuckDB must hold, it spills to a temporary folder.
Once the tables are open, no expression can read a file or reach the network.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index import Index
from tessera.pipeline.index.database import open_database
from tessera.pipeline.index.joined_table import MATCHED_BY, JoinedTable
from tessera.pipeline.index.sql_columns import (
    DERIVED,
    DOMAIN,
    WHOLE_NUMBERS,
    columns_of,
    first_line,
    kind_of,
    quoted,
    stored,
)
from tessera.pipeline.index.table_columns import sample_columns

CHUNK_ROWS = 1 << 17
"""Rows that are handed to DuckDB together; bounds the memory, decides nothing."""
_MEMORY = "600MB"
_MACROS = """
CREATE MACRO matches(value, pattern) AS regexp_matches(value, pattern);
CREATE MACRO startswith(value, start) AS starts_with(value, start);
CREATE MACRO endswith(value, ending) AS suffix(value, ending);
CREATE MACRO missing(value) AS value IS NULL;
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinCounts:
    """How the rows of a table found the samples."""

    num_rows: int
    """Rows of the table."""
    num_repeated: int
    """Rows whose value came before in the table; the first one counts."""
    num_matched: int
    """Samples with a row of the table; its columns are missing for the others."""


class SampleTable:
    """The samples of an index as a relation that SQL can ask."""

    def __init__(self, index: Index, caption_source: str, folder: Path) -> None:
        """List the columns; none is read yet.

        Args:
            index: whose samples they are.
            caption_source: which texts `text`, `num_captions` and the lengths are of.
            folder: where DuckDB may spill.

        Raises:
            ValueError: the index has no such caption source.
        """
        self.index = index
        self._streamed = sample_columns(index, caption_source)
        self._derived = {name: sql for name, sql in DERIVED.items() if name not in self._streamed}
        if "url" in self._streamed and "domain" not in self._streamed:
            self._derived["domain"] = DOMAIN
        self._joined: JoinedTable | None = None
        self._list_length, self._list_example = 0, ""
        threads = min(4, os.cpu_count() or 1)
        self._database = open_database(folder, memory=_MEMORY, threads=threads)
        self._database.execute(_MACROS)
        self.kinds = self._own_kinds()
        """What each column holds, by name: number, text, hash or condition."""

    def join(self, path: Path, on: str) -> None:
        """Add the columns of a table; of several rows with one value the first counts.

        Args:
            path: a parquet, CSV or JSON file.
            on: column of the table and of the index that rows are matched by.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read or has no column `on`, or its values are no ids.
        """
        self._joined = JoinedTable(self._database, path, on, self.kinds)
        for name, column in self._joined.columns.items():
            if name != MATCHED_BY:
                self.kinds[name] = kind_of(column.sql_type)
                if WHOLE_NUMBERS.fullmatch(column.sql_type):
                    self._whole.add(name)

    def load_joined(self, mentioning: Iterable[str]) -> JoinCounts:
        """Read the columns of the joined table that some texts mention, and match its rows.

        Raises:
            ValueError: the file cannot be read on, or no row is of a sample.
        """
        joined = self._joined
        if joined is None:
            raise RuntimeError("no table was joined")
        num_rows, num_repeated = joined.load(re.findall(r"\w+", " ".join(mentioning)))
        everything = np.arange(self.index.num_samples)
        matched = len(self._rows(f"WHERE {MATCHED_BY} IS NOT NULL", everything, MATCHED_BY))
        if not matched:
            raise ValueError(
                f"no {joined.on!r} of {joined.path} is one of the index: is {joined.on!r} the "
                f"same in both? In the table it is like {joined.example()!r}"
            )
        return JoinCounts(num_rows=num_rows, num_repeated=num_repeated, num_matched=matched)

    def list_ids(self, batches: Iterable[pa.Array]) -> None:
        """Hold the ids of a list in the table `listed`: texts, whole numbers or hashes."""
        schema = pa.schema({"id": pa.large_string()})

        def records() -> Iterator[pa.RecordBatch]:
            for ids in batches:
                if pa.types.is_fixed_size_binary(ids.type):
                    ids = pa.array([each.hex() for each in ids.to_pylist()])
                self._list_example = self._list_example or str(ids[0].as_py())
                self._list_length += len(ids)
                yield pa.record_batch([ids.cast(pa.large_string())], schema=schema)

        self._database.register("ids", pa.RecordBatchReader.from_batches(schema, records()))
        self._database.execute("CREATE TEMP TABLE listed AS SELECT DISTINCT id FROM ids")

    def list_facts(self) -> tuple[int, str]:
        """How many ids the list has, repeats counted, and the first."""
        return self._list_length, self._list_example

    def lock(self) -> None:
        """From now on nothing can read a file or reach the network."""
        self._database.execute("SET enable_external_access = false")
        self._database.execute("SET lock_configuration = true")

    def check(self, expression: str) -> list[str]:
        """See that an expression is a condition.

        Returns:
            The columns that it names, in the order in which they appear.

        Raises:
            ValueError: it is no condition on one row; the message shows where.
        """
        named = columns_of(expression)
        try:
            self._database.register("stream", self._empty())
            select = self._select([f"({expression}\n) AS found"], self._mentioned(expression))
            # In a WHERE, too, so that sums over rows are refused.
            ask = f"DESCRIBE {select} WHERE ({expression}\n) IS NOT NULL"
            kind = self._database.execute(ask).fetchall()[0][1]
        except duckdb.Error as error:
            raise ValueError(self._explained(expression, error)) from None
        if kind != "BOOLEAN":
            raise ValueError(f"{expression!r} is no condition: it gives {kind}; compare it")
        return [name for name in named if name in self.kinds]

    def truths(self, expressions: Sequence[str], ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """What each expression says of each sample.

        Args:
            expressions: C conditions that `check` has passed.
            ids: [R] rows of the index, ascending.

        Returns:
            [C, R] 1 where it holds, 0 where it does not, 2 where a missing value leaves it open.

        Raises:
            ValueError: an expression fails on some row, such as a cast.
        """
        flags = [
            f"coalesce(CAST(({expression}\n) AS UTINYINT), 2::UTINYINT) AS c{number}"
            for number, expression in enumerate(expressions)
        ]
        names = [name for each in expressions for name in self._mentioned(each)]
        try:
            found = self._ask(["row", *flags], ids, names).fetchnumpy()
        except duckdb.Error as error:
            raise ValueError(f"a condition cannot be computed: {first_line(error)}") from None
        order = np.argsort(found["row"], kind="stable")
        return np.stack([np.asarray(found[f"c{n}"])[order] for n in range(len(expressions))])

    def listed(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the samples `ids` whose value of a column is in the list of `list_ids`."""
        return self._rows(f"WHERE CAST({quoted(name)} AS VARCHAR) IN (FROM listed)", ids, name)

    def occurring_more_than(
        self, name: str, limit: int, ids: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Those of the samples `ids` whose value more than `limit` of them have."""
        column = quoted(name)
        often = f"count(*) OVER (PARTITION BY {column}) > {limit}"
        return self._rows(f"QUALIFY {column} IS NOT NULL AND {often}", ids, name)

    def repeats(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the samples `ids` whose value an earlier one of them has."""
        column = quoted(name)
        place = f"row_number() OVER (PARTITION BY {column} ORDER BY row)"
        return self._rows(f"QUALIFY {column} IS NOT NULL AND {place} > 1", ids, name)

    def values(self, name: str, ids: NDArray[np.int64]) -> pa.Array:
        """A column of some samples, null where it is missing; hashes are their bytes.

        Args:
            name: one of `kinds`.
            ids: [R] rows of the index, ascending.
        """
        if self._is_hash(name):
            return self._streamed[name](ids)
        found = self._ask(["row", quoted(name)], ids, [name]).to_arrow_table()
        found = found.sort_by("row").column(1)
        return found.combine_chunks() if found.num_chunks != 1 else found.chunk(0)

    def holds_ids(self, name: str) -> bool:
        """Whether equal values of a column mean the same: texts, hashes and whole numbers."""
        kind = self.kinds.get(name)
        return kind in ("text", "hash") or (kind == "number" and name in self._whole)

    def close(self) -> None:
        """End the database."""
        self._database.close()

    def _rows(self, after: str, ids: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        """Samples that a query over one column keeps, ascending."""
        found = self._ask(["row"], ids, [name], after).fetchnumpy()["row"]
        return np.sort(np.asarray(found, dtype=np.int64))

    def _ask(
        self, columns: Sequence[str], ids: NDArray[np.int64], names: Iterable[str], after: str = ""
    ) -> Any:
        names = list(dict.fromkeys(names))
        stream = self._stream(self._base_names(names), ids)
        self._database.register("stream", stream)
        return self._database.execute(f"{self._select(columns, names)} {after}")

    def _select(self, columns: Sequence[str], names: Sequence[str]) -> str:
        """A query over the columns `names` of all samples of the stream."""
        joined = self._joined_for(names)
        names = [*names, joined.on] if joined else names
        derived = [f"{self._derived[name]} AS {name}" for name in dict.fromkeys(names)
                   if name in self._derived]  # fmt: skip
        join = ""
        if joined:
            join = f"LEFT JOIN joined ON {MATCHED_BY} = CAST({quoted(joined.on)} AS VARCHAR)"
        fields = self._schema(self._base_names(names))
        base = ", ".join(["row", *(f"{stored(each)} AS {quoted(each.name)}" for each in fields)])
        return (
            f"WITH base AS (SELECT {base} FROM stream), "  # noqa: S608
            f"own AS (SELECT {', '.join(['*', *derived])} FROM base), "
            f"samples AS (SELECT * FROM own {join}) "
            f"SELECT {', '.join(columns)} FROM samples"
        )

    def _joined_for(self, names: Iterable[str]) -> JoinedTable | None:
        """The joined table, if one of some columns is of it."""
        joined = self._joined
        return joined if joined and any(name in joined.columns for name in names) else None

    def _base_names(self, names: Sequence[str]) -> list[str]:
        """Streamed columns that some columns are made of."""
        joined = self._joined_for(names)
        names = [*names, joined.on] if joined else names
        words = set(re.findall(r"\w+", " ".join(self._derived.get(n, n) for n in names)))
        return [name for name in self._streamed if name in words]

    def _mentioned(self, expression: str) -> list[str]:
        """Columns whose names occur in an expression; some may stand in its texts only."""
        words = set(re.findall(r"\w+", expression))
        return [name for name in self.kinds if name in words]

    def _is_hash(self, name: str) -> bool:
        if name not in self._streamed:
            return False
        return pa.types.is_fixed_size_binary(self._schema([name]).field(0).type)

    def _own_kinds(self) -> dict[str, str]:
        names = [*self._streamed, *self._derived]
        self._database.register("stream", self._empty())
        found = self._database.execute(f"DESCRIBE {self._select(['*'], names)}").fetchall()
        kinds = {name: kind for name, kind, *_ in found if name != "row"}
        self._whole = {name for name, kind in kinds.items() if WHOLE_NUMBERS.fullmatch(kind)}
        return {
            name: "hash" if self._is_hash(name) else kind_of(kind) for name, kind in kinds.items()
        }

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        """Of the streamed columns `names`, without the row."""
        nothing = np.empty(0, dtype=np.int64)
        return pa.schema([(name, self._streamed[name](nothing).type) for name in names])

    def _stream(self, names: Sequence[str], ids: NDArray[np.int64]) -> pa.RecordBatchReader:
        schema = pa.schema([("row", pa.int64()), *self._schema(names)])

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(ids), CHUNK_ROWS):
                some = ids[start : start + CHUNK_ROWS]
                arrays = [pa.array(some), *(self._streamed[name](some) for name in names)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _empty(self) -> pa.RecordBatchReader:
        return self._stream(list(self._streamed), np.empty(0, dtype=np.int64))

    def _explained(self, expression: str, error: duckdb.Error) -> str:
        """DuckDB's message in one paragraph, with the columns that there are."""
        message = str(error).split("\n\nLINE", 1)[0].strip()
        quotes = "\ntexts stand in single quotes" if '"' in expression else ""
        known = ", ".join(sorted(self.kinds))
        return f"{expression!r}: {message}{quotes}\nknown columns: {known}"


@contextmanager
def open_samples(index: Index, caption_source: str = "caption") -> Iterator[SampleTable]:
    """The samples of an index as a relation, with a folder to spill to that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="tessera-sql-") as folder:
        table = SampleTable(index, caption_source, Path(folder))
        try:
            yield table
        finally:
            table.close()
