"""Cells of Arrow columns as Python has them, with what is wrong with some of them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tessera.pipeline.index.cells import MAX_TEXT_CHARACTERS
from tessera.pipeline.index.foreign_tables import Problem


class BadCell:
    """A cell that cannot be used."""

    def __init__(self, problem: Problem, detail: str) -> None:
        self.problem = problem
        self.detail = detail


_DAMAGED = BadCell(Problem.UNREADABLE, "the file is damaged here: a value is missing")


def cells_of(column: pa.Array, limit: int | None = MAX_TEXT_CHARACTERS) -> list[Any]:
    """The cells of a column as Python has them; equal texts of a dictionary are one object.

    Args:
        column: of any type; dates and times come as text.
        limit: characters of a text at most; None for any length.

    Returns:
        Values, None for nulls, and a `BadCell` for what cannot be used.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        values = cells_of(column.dictionary, limit)
        return [
            None if place is None else values[place] if 0 <= place < len(values) else _DAMAGED
            for place in column.indices.to_pylist()
        ]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _list_cells(column, limit)
    if pa.types.is_struct(kind):
        fields = {
            field.name: cells_of(column.field(place), limit) for place, field in enumerate(kind)
        }
        valid = column.is_valid().to_pylist()
        return [
            _struct_cell({name: cells[row] for name, cells in fields.items()})
            if valid[row]
            else None
            for row in range(len(column))
        ]
    if is_text(kind):
        return _text_cells(column, limit)
    if pa.types.is_temporal(kind):
        column = column.cast(pa.string())  # Python's dates end with the year 9999
    return column.to_pylist()


def _struct_cell(fields: dict[str, Any]) -> Any:
    return next((value for value in fields.values() if isinstance(value, BadCell)), fields)


def _list_cells(column: Any, limit: int | None) -> list[Any]:
    offsets, valid = column.offsets.to_pylist(), column.is_valid().to_pylist()
    values = cells_of(column.values, limit)
    found: list[Any] = []
    for row, is_valid in enumerate(valid):
        part = values[offsets[row] : offsets[row + 1]] if is_valid else None
        bad = next((each for each in part or () if isinstance(each, BadCell)), None)
        found.append(bad or part)
    return found


def _text_cells(column: pa.Array, limit: int | None) -> list[Any]:
    raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
    return [_text_cell(each, limit) for each in raw.to_pylist()]


def _text_cell(raw: bytes | None, limit: int | None) -> Any:
    if raw is None:
        return None
    if limit is not None and len(raw) > 4 * limit:
        return BadCell(Problem.TOO_LONG, f"{len(raw):,} bytes exceed the limit of {4 * limit:,}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        detail = f"a text is not UTF-8: {error.reason} at byte {error.start}"
        return BadCell(Problem.ENCODING, detail)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether a column holds byte strings of any length."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
