"""CSV, TSV and what else has separators; the separator and the encoding are found out.

Quotes in a file with tabs are part of the text, as in CC12M's table and Flickr's `token.txt`,
unless its name ends with `.csv`. Elsewhere they are as Excel writes them: around fields, doubled
inside.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tessera.pipeline.index.cells import is_storable
from tessera.pipeline.index.foreign_tables import USUAL_NAMES, BadRow, Problem, Row, check_columns

SUFFIXES = (".csv", ".tsv", ".txt", ".token")
"""Of files that are read here."""
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
_MAX_FIELD_CHARACTERS = 16 * 1024**2
_SAMPLE_BYTES = 8 * 1024**2
_SAMPLE_ROWS = 20
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FLICKR_TOKENS = re.compile(r"[^\t\n]+\.(?:jpe?g|png|webp)#\d+\t", re.IGNORECASE)
_KNOWN_NAMES = frozenset(" ".join(USUAL_NAMES.values()).split()) | {"key", "url"}


@dataclass(frozen=True, kw_only=True)
class DelimitedTable:
    """Files with separators between fields; all have the columns of the first."""

    files: tuple[Path, ...]
    """Read one after the other."""
    delimiter: str = ""
    """One character; found out if empty."""
    encoding: str = ""
    """Python's name of the encoding; found out if empty."""
    header: bool = True
    """Whether the first row names the columns; else they are numbers from 1."""

    def __post_init__(self) -> None:
        if self.delimiter and len(self.delimiter) != 1:
            raise ValueError(f"--delimiter is one character, got {self.delimiter!r}")
        if self.encoding:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(f"Python has no encoding {self.encoding!r}") from None

    @property
    def names(self) -> list[str]:
        """See `Table`. Flickr's `token.txt` has the columns image and caption."""
        return self._names

    @cached_property
    def _names(self) -> list[str]:
        if self._is_flickr_tokens:
            return ["image", "caption"]
        return self._names_of(self.files[0]) if self.header else []

    @property
    def notes(self) -> list[str]:
        """See `Table`."""
        encoding, separator = self._format
        found = []
        usual = "\t" if self.files[0].suffix.lower() == ".tsv" else ","
        if not self.delimiter and separator != usual:
            found.append(f"separated by {_SEPARATORS[separator]}")
        if not self.encoding and not encoding.startswith("utf-8"):
            found.append(f"encoded in {encoding}")
        return found

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """See `Table`."""
        number = 0
        for path in self.files:
            prefix = f"{path.name}, " if len(self.files) > 1 else ""
            names, records = self._records(path)
            places = self._places(path, names, columns)
            for line, record in records:
                where = f"{prefix}line {line}"
                yield self._row(where, number, record, names, places)
                number += 1

    @cached_property
    def _format(self) -> tuple[str, str]:
        """Encoding and separator of the first file."""
        encoding = self.encoding or _encoding_of(self.files[0])
        if self.delimiter:
            return encoding, self.delimiter
        return encoding, _separator_of(self.files[0], encoding, header=self.header)

    @cached_property
    def _is_flickr_tokens(self) -> bool:
        encoding, separator = self._format
        if separator != "\t":
            return False
        with self.files[0].open(encoding=encoding, errors="replace") as file:
            return all(_FLICKR_TOKENS.match(line) for line in islice(file, _SAMPLE_ROWS))

    def _reader(self, file: io.TextIOBase, path: Path) -> Any:
        csv.field_size_limit(_MAX_FIELD_CHARACTERS)
        separator = self._format[1]
        literal = separator == "\t" and path.suffix.lower() != ".csv"
        # Strict: a quote that is never closed would swallow the rows after it without a word.
        return csv.reader(
            file,
            delimiter=separator,
            quoting=csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL,
            skipinitialspace=separator == "|",
            strict=True,
        )

    def _open(self, path: Path) -> io.TextIOWrapper:
        # Bytes of another encoding come through as surrogates; the rows that hold any are bad.
        return path.open(encoding=self._format[0], errors="surrogateescape", newline="")

    def _names_of(self, path: Path) -> list[str]:
        with self._open(path) as file:
            return _header(self._reader(file, path), path)

    def _records(self, path: Path) -> tuple[list[str], Iterator[tuple[int, list[str] | str]]]:
        if not self.header or self._is_flickr_tokens:
            return self.names, self._all_records(path, skip_header=False)
        return self._names_of(path), self._all_records(path, skip_header=True)

    def _all_records(
        self, path: Path, *, skip_header: bool
    ) -> Iterator[tuple[int, list[str] | str]]:
        """Line and fields of each record, or what is wrong with it; empty lines are left out."""
        with self._open(path) as file:
            reader = self._reader(file, path)
            if skip_header:
                _header(reader, path)
            while True:
                first = reader.line_num + 1
                try:
                    record = next(reader)
                except StopIteration:
                    return
                except UnicodeError as error:
                    raise ValueError(
                        f"{path}, after line {reader.line_num}: it is not {self._format[0]} "
                        f"({error}); name another --encoding"
                    ) from None
                except csv.Error as error:
                    lines = f"; lines {first} to {reader.line_num} are left out"
                    yield first, str(error) + (lines if reader.line_num > first else "")
                    continue
                if record:
                    yield first, record

    def _places(self, path: Path, names: list[str], columns: Sequence[str]) -> list[int]:
        if self.header or self._is_flickr_tokens:
            check_columns(names, columns, str(path))
            return [names.index(column) for column in columns]
        if not all(column.isdecimal() and int(column) for column in columns):
            raise ValueError("without a header, columns are numbers counted from 1")
        return [int(column) - 1 for column in columns]

    def _row(
        self, where: str, number: int, record: list[str] | str, names: list[str], places: list[int]
    ) -> Row | BadRow:
        if isinstance(record, str):
            return BadRow(where, Problem.UNREADABLE, record)
        if names and len(record) != len(names):
            detail = (
                f"{len(record)} fields where the header has {len(names)}: put quotes around fields "
                "that hold the separator"
            )
            return BadRow(where, Problem.UNREADABLE, detail)
        try:
            values: list[Any] = [record[place] for place in places]
        except IndexError:
            detail = f"it has no column {max(places) + 1}, only {len(record)}"
            return BadRow(where, Problem.UNREADABLE, detail)
        if not is_storable("".join(values)):
            encoding = self._format[0].removesuffix("-sig").upper()
            detail = f"it is not {encoding}; name another --encoding, such as cp1252"
            return BadRow(where, Problem.ENCODING, detail)
        if self._is_flickr_tokens:
            values = [str(value).rpartition("#")[0] if place == 0 else value
                      for place, value in zip(places, values, strict=True)]  # fmt: skip
        elif self._format[1] == "|":
            values = [str(value).strip() for value in values]
        return Row(where, values, number)


def _header(reader: Any, path: Path) -> list[str]:
    try:
        return [name.strip() for name in next(reader, [])]
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{path}, header: {error}") from None


def _encoding_of(path: Path) -> str:
    """UTF-8 unless a byte order mark, zero bytes, or most of the lines say otherwise.

    A file whose lines with letters beyond ASCII are mostly no UTF-8 is taken for Windows' cp1252;
    a few such lines in a file of UTF-8 are damage, and stay it.
    """
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    for mark, name in sorted(_BYTE_ORDER_MARKS.items(), key=lambda item: -len(item[0])):
        if sample.startswith(mark):
            return name
    for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(sample) >= 4 and sample[start::2].count(0) > 0.4 * (len(sample) // 2):
            return name
    foreign = [line for line in sample.splitlines()[:-1] or [sample] if not line.isascii()]
    wrong = sum(not _is_utf8(line) for line in foreign)
    return "cp1252" if wrong > len(foreign) / 2 else "utf-8-sig"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _separator_of(path: Path, encoding: str, *, header: bool) -> str:
    """The separator by which the first rows make most sense; what the name says where none does."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
        lines = file.read(_SAMPLE_BYTES).splitlines(keepends=True)[: 4 * _SAMPLE_ROWS]
    candidates = sorted(_SEPARATORS, key=lambda separator: separator != usual)
    return max(candidates, key=lambda separator: _sense(lines, separator, header=header))


def _sense(lines: list[str], separator: str, *, header: bool) -> tuple[int, float, int]:
    """Usual column names that it finds, share of rows like the first, and whether there are two.

    `max` takes the first of equals, so that what the file's name says wins a tie.
    """
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=separator, quoting=quoting)
    try:
        records = [record for record in islice(reader, _SAMPLE_ROWS) if record]
    except csv.Error:
        records = []
    if not records or len(records[0]) < 2:
        return (0, 0.0, 0)
    names = {name.strip().lower() for name in records[0]}
    alike = sum(len(record) == len(records[0]) for record in records) / len(records)
    return (len(names & _KNOWN_NAMES) if header else 0, round(alike, 1), 1)
