"""A parquet table beside an index: rows are matched by a column that both have.

Legend: M samples of the index, R rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.selection.hashing import hash_values
from pipeline.selection.values import Kind, Values, from_arrow, kind_of, missing
from pipeline.tables.parquet import id_batches, open_parquet, parquet_batches, plain_values


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinCounts:
    """How the rows of a table found the samples."""

    num_rows: int
    """Rows of the table."""
    num_repeated: int
    """Rows whose value came before in the table; the first one counts."""
    num_matched: int
    """Samples with a row of the table; the columns are missing for the others."""


class JoinedTable:
    """The columns of a parquet file, in the order of an index's samples.

    Matching compares 64-bit hashes: with 12.4 M samples and as many rows, the chance of one wrong
    match is 1 in 100,000. Only the column matched by and the columns named are ever read, and of
    those the matched rows alone are held.
    """

    def __init__(
        self,
        path: Path,
        on: str,
        index_keys: Callable[[], NDArray[np.uint64]],
    ) -> None:
        """Open the file.

        Args:
            path: a parquet file.
            on: name of the column matched by.
            index_keys: gives [M] hashes of the index's column `on` for the purpose "join".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no parquet file or has no column `on`.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no table {path} to join")
        self._file = open_parquet(path)
        self.path = path
        self.on = on
        self._index_keys = index_keys
        self.kinds: dict[str, Kind] = {}
        """What the usable columns hold, by the name an expression has for them."""
        self._stored_names: dict[str, str] = {}
        schema = self._file.schema_arrow
        if on not in schema.names:
            raise ValueError(f"{path} has no column {on!r}; it has: {', '.join(schema.names)}")
        self._add_kinds(schema)

    def _add_kinds(self, schema: pa.Schema) -> None:
        for field in schema:
            name = "".join(c if c.isalnum() else "_" for c in field.name)
            name = name if name.isidentifier() else f"_{name}"
            try:
                kind = kind_of(field.type)
            except TypeError:
                continue
            if field.name != self.on and name not in self.kinds:
                self.kinds[name] = kind
                self._stored_names[name] = field.name

    @property
    def counts(self) -> JoinCounts:
        """How the rows found the samples; reads the column matched by.

        Raises:
            ValueError: none did.
        """
        return self._match[1]

    def reader(self, name: str) -> Callable[[NDArray[np.int64]], Values]:
        """What reads a column for some samples; the column is loaded with the first of them."""
        loaded: list[pa.Array] = []

        def read(ids: NDArray[np.int64]) -> Values:
            if not loaded:
                loaded.append(self._load(self._stored_names[name]))
            places = self._place[ids]
            return from_arrow(loaded[0].take(pa.array(places, mask=places < 0)))

        return read

    @cached_property
    def _match(self) -> tuple[NDArray[np.int64], JoinCounts]:
        """[M] row of the table for each sample, -1 where there is none."""
        parts, gone = [np.empty(0, np.uint64)], [np.empty(0, bool)]
        for ids in id_batches(self.path, self.on):
            values = from_arrow(ids)
            parts.append(hash_values(values, "join"))
            gone.append(missing(values).true)
        # A missing value of the index hashes like no value that is left here.
        there = np.flatnonzero(~np.concatenate(gone))
        hashes, first = np.unique(np.concatenate(parts)[there], return_index=True)
        wanted = self._index_keys()
        row = np.full(len(wanted), -1, dtype=np.int64)
        if len(hashes):
            places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
            found = hashes[places] == wanted
            row[found] = there[first[places[found]]]
        num_matched = int(np.count_nonzero(row >= 0))
        if not num_matched:
            raise ValueError(
                f"no {self.on!r} of {self.path} is one of the index: "
                f"is {self.on!r} the same in both? In the table it is like {self._example()!r}"
            )
        counts = JoinCounts(
            num_rows=self._file.metadata.num_rows,
            num_repeated=len(there) - len(hashes),
            num_matched=num_matched,
        )
        return row, counts

    @cached_property
    def _used_rows(self) -> NDArray[np.int64]:
        """Rows of the table that some sample has, ascending."""
        row = self._match[0]
        return np.unique(row[row >= 0])

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """[M] place of each sample's row among those that are used, -1 where there is none."""
        row = self._match[0]
        return np.where(row >= 0, np.searchsorted(self._used_rows, row), -1)

    def _load(self, stored_name: str) -> pa.Array:
        parts, start = [], 0
        for batch in parquet_batches(self.path, [stored_name]):
            first, last = np.searchsorted(self._used_rows, [start, start + len(batch)])
            column = plain_values(batch.column(0), f"{self.path}, column {stored_name!r}")
            here = column.take(pa.array(self._used_rows[first:last] - start))
            # Texts of many batches may be more than the 2 GiB that plain strings can hold.
            parts.append(here.cast(pa.large_string()) if pa.types.is_string(here.type) else here)
            start += len(batch)
        return pa.concat_arrays(parts)

    def _example(self) -> object:
        return next((ids[0].as_py() for ids in id_batches(self.path, self.on) if len(ids)), None)
