"""What every table gives: named columns, rows one after the other, and what is wrong with some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

USUAL_NAMES = {
    "image": (
        "image image_path image_file image_name image_id filepath file_path file_name filename "
        "file path img photo jpg"
    ),
    "caption": (
        "caption captions text texts sentence sentences title description comment alt_text txt"
    ),
    "label": "label class cls",
}
"""Names that columns usually have, by meaning; the first that a table has is taken."""


class Problem(StrEnum):
    """Why a row cannot be used."""

    UNREADABLE = "unreadable"
    ENCODING = "encoding"
    TOO_LONG = "too_long"


class Row(NamedTuple):
    """A row of a table."""

    where: str
    """For messages, such as `line 17` or `row 3 of b.parquet`."""
    values: list[object]
    """Of the columns asked for, in their order; None where the row has none."""
    number: int
    """Counted from 0 over all files, unreadable rows included."""


class BadRow(NamedTuple):
    """A row that cannot be read."""

    where: str
    """As in `Row`."""
    problem: Problem
    """The kind of fault."""
    detail: str
    """One sentence for a person."""


class Table(Protocol):
    """Reads one or more files of the same kind."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order they are read."""
        ...

    @property
    def names(self) -> list[str]:
        """Columns. JSON tables name those of their first object; empty without a header."""
        ...

    @property
    def notes(self) -> list[str]:
        """What was found out about the format, such as `separated by tabs`."""
        ...

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """All rows in order, with the values of some columns.

        Raises:
            ValueError: a column is missing or comes twice, or the file cannot be read on.
        """
        ...


def find_column(names: Sequence[str], wanted: str | None, meaning: str) -> str | None:
    """The column that was named, or the one that has a usual name.

    Args:
        names: columns of the table.
        wanted: the name a person gave; None to go by usual names.
        meaning: `image`, `caption` or `label`.

    Returns:
        None if no name was given and no column has a usual name.

    Raises:
        ValueError: the table has no such column, or has it twice.
    """
    if wanted is not None:
        check_columns(names, [wanted])
        return wanted
    by_lower_name = {name.lower(): name for name in reversed(names)}
    usual = USUAL_NAMES[meaning].split()
    found = next((by_lower_name[name] for name in usual if name in by_lower_name), None)
    if found is not None:
        check_columns(names, [found])
    return found


def required_column(names: Sequence[str], wanted: str | None, meaning: str) -> str:
    """As `find_column`, for a column that must be there.

    Raises:
        ValueError: it is missing.
    """
    found = find_column(names, wanted, meaning)
    if found is None:
        known = ", ".join(map(repr, names)) or "no column"
        raise ValueError(
            f"no column looks like the {meaning}: the table has {known}; "
            f"name one with --{meaning}-column"
        )
    return found


def check_columns(names: Sequence[str], wanted: Sequence[str], where: str = "the table") -> None:
    """See that columns are there, each once.

    Raises:
        ValueError: one is missing or comes twice.
    """
    for name in wanted:
        count = list(names).count(name)
        if count > 1:
            raise ValueError(f"{where} has {count} columns {name!r}: rename all but one")
        if not count:
            known = ", ".join(map(repr, names)) or "none"
            raise ValueError(f"{where} has no column {name!r}; it has: {known}")
