"""Tables with named columns: CSV, TSV, JSON lines and parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.caption_sources.rows import ROWS_AT_ONCE, RowBatch, check_text, json_object, texts_of
from pipeline.caption_sources.text_lines import not_utf8

MAX_FIELD_CHARACTERS = 16 * 1024**2
"""Longest field of a CSV."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Ends of the names of tables, which say how they are read."""
Row = tuple[str, str, list[object]]
"""Where it was found, its key, and the values of the text columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableReader:
    """Tables of one kind, one after the other."""

    files: tuple[Path, ...]
    """With the ends `.csv`, `.tsv`, `.jsonl` or `.parquet`."""
    text_columns: tuple[str, ...]
    """Columns of the texts; each may hold one text, a list of texts, or nothing."""
    key_column: str
    """Column that rows are joined by; empty if they are joined by their order."""
    stem: bool = False
    """The key is the last part of a path without its suffix: `a/b/000012.jpg` is `000012`."""

    def batches(self) -> Iterator[RowBatch]:
        """See `Reader`."""
        first_row = 0
        for path in self.files:
            batch = RowBatch(first_row=first_row)
            for where, key, values in self._rows(path):
                if len(batch.texts) == ROWS_AT_ONCE:
                    check_text(batch, path)
                    yield batch
                    batch = RowBatch(first_row=batch.first_row + ROWS_AT_ONCE)
                batch.where.append(where)
                if self.key_column:
                    batch.keys.append(stem_of(key) if self.stem else key)
                place = f"{path}, {where}"
                batch.texts.append([text for value in values for text in texts_of(value, place)])
            check_text(batch, path)
            yield batch
            first_row = batch.first_row + len(batch.texts)

    def _rows(self, path: Path) -> Iterator[Row]:
        wanted = ([self.key_column] if self.key_column else []) + list(self.text_columns)
        read = {".parquet": _parquet_rows, ".jsonl": _json_rows}.get(
            path.suffix.lower(), _delimited_rows
        )
        for where, values in read(path, wanted):
            if not self.key_column:
                yield where, "", values
            else:
                yield where, "" if values[0] is None else str(values[0]), values[1:]


def stem_of(path: str) -> str:
    """The last part of a path or URL without its suffix."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def delimited_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV (quotes as Excel has them) or a TSV (quotes are part of the text).

    Returns:
        The line that each row starts at, and its fields; empty lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row cannot be read or is not UTF-8; the message names the line.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    tabs = path.suffix.lower() == ".tsv"
    dialect = csv.excel_tab if tabs else csv.excel
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Strict: a quote that is never closed would swallow the rows behind it without a word.
        reader = csv.reader(file, dialect, quoting=quoting, strict=True)
        start = 1
        try:
            for row in reader:
                if row:
                    yield start, row
                start = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from None
        except csv.Error as error:
            raise ValueError(f"{path}, line {start}: {error}") from None


def _delimited_rows(path: Path, wanted: list[str]) -> Iterator[tuple[str, list[object]]]:
    rows = delimited_rows(path)
    _, names = next(rows, (0, []))
    places = [_place(path, names, name) for name in wanted]
    for line, row in rows:
        if len(row) != len(names):
            msg = f"{len(row)} fields where the header has {len(names)}"
            raise ValueError(f"{path}, line {line}: {msg}")
        yield f"line {line}", [row[place] for place in places]


def _json_rows(path: Path, wanted: list[str]) -> Iterator[tuple[str, list[object]]]:
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            document = json_object(line, f"{path}, line {number}")
            seen.update(document)
            yield f"line {number}", [document.get(name) for name in wanted]
    for name in wanted:
        _place(path, sorted(seen), name)


def _parquet_rows(path: Path, wanted: list[str]) -> Iterator[tuple[str, list[object]]]:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file ({error})") from None
    with file:
        for name in wanted:
            _place(path, file.schema_arrow.names, name)
        number = 0
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(dict.fromkeys(wanted))):
                columns = [batch.column(name).to_pylist() for name in wanted]
                for values in _transposed(columns):
                    number += 1
                    yield f"row {number}", values
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read behind row {number} ({error})") from None


def _transposed(columns: Sequence[list[object]]) -> Iterable[list[object]]:
    return map(list, zip(*columns, strict=True))


def _place(path: Path, names: Sequence[str], wanted: str) -> int:
    if wanted not in names:
        known = ", ".join(map(repr, names)) or "none"
        msg = f"{path} has no column {wanted!r}; it has: {known}"
        raise ValueError(f"{msg}. Name columns with --text-columns and --key-column")
    return list(names).index(wanted)
