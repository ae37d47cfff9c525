"""Tables of image paths and captions in text files: CSV, TSV and JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.sharding.samples import DraftRows, Skipped, SkipReason

_MAX_FIELD_CHARACTERS = 16 * 1024**2
_USUAL_NAMES = {
    "image": "image image_path image_file filepath file_path file_name filename file path img",
    "caption": "caption captions text texts sentence sentences title description",
    "label": "label class cls",
}


def find_column(names: Sequence[str], wanted: str | None, meaning: str) -> int | None:
    """Place of a column: the one named, or the one that has a usual name.

    Args:
        names: columns of the table.
        wanted: the name a person gave; None to go by usual names.
        meaning: `image`, `caption` or `label`.

    Returns:
        None if none was named and none has a usual name.

    Raises:
        ValueError: the table has no column of the name given.
    """
    if wanted is not None:
        if wanted not in names:
            msg = f"there is no column {wanted!r}"
            raise ValueError(f"{msg}; the table has {', '.join(map(repr, names))}")
        return names.index(wanted)
    lowered = [name.strip().lower() for name in names]
    return next(
        (lowered.index(name) for name in _USUAL_NAMES[meaning].split() if name in lowered), None
    )


def required_column(names: Sequence[str], wanted: str | None, meaning: str) -> int:
    """As `find_column`, for a column that must be there.

    Raises:
        ValueError: it is not.
    """
    place = find_column(names, wanted, meaning)
    if place is None:
        msg = f"no column looks like the {meaning}: the table has {', '.join(map(repr, names))}"
        raise ValueError(f"{msg}; name one with --{meaning}-column")
    return place


def read_delimited(
    path: Path, columns: tuple[str | None, str | None, str | None], *, header: bool
) -> Iterator[DraftRows | Skipped]:
    """Rows of a CSV (quotes as Excel has them) or a TSV (tabs only; quotes are part of the text).

    Args:
        path: the table, UTF-8 with or without a byte order mark.
        columns: image, caption and label column; None to go by usual names, and for no label.
        header: whether the first row names the columns; else they are numbers from 1.

    Raises:
        ValueError: a column is missing.
    """
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    # Bytes that are not UTF-8 come through as surrogates, and the rows that hold any are skipped.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        tabs = path.suffix.lower() == ".tsv"
        dialect = csv.excel_tab if tabs else csv.excel
        quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
        # Strict: a quote that is never closed would swallow the rows behind it without a word.
        reader = csv.reader(file, dialect, quoting=quoting, strict=True)
        try:
            names = next(reader, []) if header else []
        except csv.Error as error:
            raise ValueError(f"{path}, header: {error}") from None
        places = _header_places(names, columns) if header else _numbered_places(columns)
        for where, row in _rows(reader):
            if isinstance(row, str):
                yield Skipped(where, SkipReason.UNREADABLE_ROW, row)
            elif names and len(row) != len(names):
                detail = f"{len(row)} fields where the header has {len(names)}"
                yield Skipped(where, SkipReason.UNREADABLE_ROW, detail)
            elif max(place for place in places if place is not None) >= len(row):
                yield Skipped(where, SkipReason.UNREADABLE_ROW, f"only {len(row)} fields")
            else:
                yield DraftRows(where, *(None if place is None else row[place] for place in places))


def _rows(reader: Any) -> Iterator[tuple[str, list[str] | str]]:
    """Lines and their fields, or what is wrong with them; empty lines are passed over."""
    while True:
        first = reader.line_num + 1
        where = f"line {first}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            more = f"; lines {first} to {reader.line_num} are left out"
            yield where, str(error) + (more if reader.line_num > first else "")
            continue
        if row:
            yield where, row


def _header_places(
    names: list[str], columns: tuple[str | None, str | None, str | None]
) -> list[int | None]:
    try:
        return _named_places(names, columns)
    except ValueError as error:
        raise ValueError(f"{error}, or say --no-header if the first row is data") from None


def _named_places(
    names: list[str], columns: tuple[str | None, str | None, str | None]
) -> list[int | None]:
    image, caption, label = columns
    places = [
        required_column(names, image, "image"),
        find_column(names, caption, "caption"),
        find_column(names, label, "label") if label is not None else None,
    ]
    if places[1] is None and label is None:
        required_column(names, caption, "caption")
    return places


def _numbered_places(columns: tuple[str | None, str | None, str | None]) -> list[int | None]:
    image, caption, label = columns
    numbers = (image or "1", caption or "2", label)
    if any(number is not None and not (number.isdecimal() and int(number)) for number in numbers):
        raise ValueError("without a header, columns are numbers counted from 1")
    return [None if number is None else int(number) - 1 for number in numbers]


def read_json_lines(
    path: Path, columns: tuple[str | None, str | None, str | None]
) -> Iterator[DraftRows | Skipped]:
    """Rows of a file with one JSON object a line.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        columns: as for `read_delimited`; usual names are looked for in the first object.

    Raises:
        ValueError: a column is missing.
    """
    names: list[str] | None = None
    keys: list[str | None] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"line {number}"
            if not line.strip():
                continue
            try:
                document = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield Skipped(where, SkipReason.UNREADABLE_ROW, f"not JSON: {error}")
                continue
            if not isinstance(document, dict):
                yield Skipped(where, SkipReason.UNREADABLE_ROW, "not a JSON object")
                continue
            if names is None:
                names = list(document)
                places = _named_places(names, columns)
                keys = [None if place is None else names[place] for place in places]
            yield DraftRows(where, *(document.get(key) if key else None for key in keys))
