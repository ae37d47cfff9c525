"""A table of other people whose columns are added to an index's, in a DuckDB database."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from tessera.pipeline.index.arrow_tables import open_parquet
from tessera.pipeline.index.cells import MAX_TEXT_CHARACTERS
from tessera.pipeline.index.sql_columns import (
    first_line,
    id_text,
    identifier,
    kind_of,
    quoted,
    without_empties,
)

MATCHED_BY = "joined_on"
"""Name of the column that rows are matched by, as text."""
_READERS = {
    ".parquet": "read_parquet",
    ".json": "read_json",
    ".jsonl": "read_json",
    ".ndjson": "read_json",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedColumn:
    """A column of the table."""

    name: str
    """In the file."""
    sql: str
    """Its values, NULL for what counts as missing."""
    sql_type: str
    """DuckDB's name of its type in the file."""


class JoinedTable:
    """The view `file` of a table, and its rows by their id in the table `joined`."""

    def __init__(
        self, database: duckdb.DuckDBPyConnection, path: Path, on: str, taken: Container[str]
    ) -> None:
        """Look at the columns of the file; no row is read yet.

        Args:
            database: where the view and the table are made.
            path: a parquet, CSV or JSON file.
            on: column that rows are matched by.
            taken: names of columns that get the prefix `joined_` here.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read or has no column `on`, or its values are no ids.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no table {path} to join")
        if path.suffix.lower() == ".parquet":
            open_parquet(path)  # its own words for what is no parquet file
        self._database = database
        self.path, self.on = path, on
        place = str(path).replace("'", "''")
        reader = _READERS.get(path.suffix.lower(), "read_csv")
        try:
            database.execute(f"CREATE VIEW file AS SELECT * FROM {reader}('{place}')")  # noqa: S608
            found = database.execute("DESCRIBE file").fetchall()
        except duckdb.Error as error:
            raise ValueError(f"{path} cannot be read as a table ({first_line(error)})") from None
        types = {name: sql_type for name, sql_type, *_ in found}
        if on not in types:
            raise ValueError(f"{path} has no column {on!r}; it has: {', '.join(types)}")
        ids = JoinedColumn(name=on, sql=id_text(path, on, types[on]), sql_type="VARCHAR")
        self.columns = {MATCHED_BY: ids}
        """By the name that a condition has for them."""
        for name, sql_type in types.items():
            plain = identifier(name)
            plain = f"joined_{plain}" if plain in taken else plain
            if name != on and kind_of(sql_type) and plain not in self.columns:
                sql = without_empties(quoted(name), sql_type)
                self.columns[plain] = JoinedColumn(name=name, sql=sql, sql_type=sql_type)

    def load(self, wanted: Container[str]) -> tuple[int, int]:
        """Read the rows into the table `joined`, the first of each id.

        Args:
            wanted: names of columns to keep, beside the id.

        Returns:
            Rows of the file, and those whose id came before.

        Raises:
            ValueError: the file cannot be read on, or stands for far more bytes than it has.
        """
        self.columns = {n: c for n, c in self.columns.items() if n == MATCHED_BY or n in wanted}
        columns = ", ".join(f"{each.sql} AS {quoted(name)}" for name, each in self.columns.items())
        try:
            self._check_size()
            self._database.execute(
                "CREATE TEMP TABLE joined AS SELECT * EXCLUDE (joined_row) FROM ("  # noqa: S608
                f"SELECT {columns}, row_number() OVER () AS joined_row FROM file) "
                f"WHERE {MATCHED_BY} IS NOT NULL "
                f"QUALIFY row_number() OVER (PARTITION BY {MATCHED_BY} ORDER BY joined_row) = 1"
            )
            ids = self.columns[MATCHED_BY].sql
            total, there = self._one(f"SELECT count(*), count({ids}) FROM file")  # noqa: S608
        except duckdb.Error as error:
            raise ValueError(f"{self.path} cannot be read ({first_line(error)})") from None
        return total, there - self._one("SELECT count(*) FROM joined")[0]

    def example(self) -> str:
        """One of the ids."""
        return self._one(f"SELECT min({MATCHED_BY}) FROM joined")[0]  # noqa: S608

    def _check_size(self) -> None:
        """Refuse columns that stand for far more bytes than the file has."""
        if self.path.suffix.lower() == ".parquet":
            open_parquet(self.path, [each.name for each in self.columns.values()])
        texts = [each.sql for each in self.columns.values() if each.sql_type == "VARCHAR"]
        lengths = ", ".join(f"max(strlen({sql}))" for sql in texts)
        longest = max(length or 0 for length in self._one(f"SELECT {lengths} FROM file"))  # noqa: S608
        if longest > 4 * MAX_TEXT_CHARACTERS:
            raise ValueError(
                f"{self.path} holds a text of {longest:,} bytes; the limit is "
                f"{4 * MAX_TEXT_CHARACTERS:,}"
            )

    def _one(self, query: str) -> tuple[Any, ...]:
        """The only row of an answer."""
        return self._database.execute(query).fetchall()[0]
