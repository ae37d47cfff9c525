"""What every reader of captions gives: rows of a file, some at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ROWS_AT_ONCE = 4096
"""Rows that readers hand over together."""
_NUM_ORIGINALS_SHOWN = 80


@dataclass(kw_only=True, slots=True)
class RowBatch:
    """Consecutive rows of the input."""

    first_row: int
    """Number of the first of them, counted from 0 over all files."""
    texts: list[list[str]] = field(default_factory=list)
    """The texts of each row; empty where it has none."""
    keys: list[str] = field(default_factory=list)
    """What each row is joined by; empty if rows have no key at all."""
    where: list[str] = field(default_factory=list)
    """Where each row was found, such as `line 17`, for messages; empty if its number says it."""

    def place_of(self, row: int) -> str:
        """Where a row of this batch was found."""
        return self.where[row] if self.where else f"row {self.first_row + row + 1}"


class Reader(Protocol):
    """Reads captions from files."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read."""
        ...

    def batches(self) -> Iterator[RowBatch]:
        """All rows in order, every batch with at most `ROWS_AT_ONCE`.

        Raises:
            ValueError: a row cannot be read; the message names the file and the line.
        """
        ...


def check_text(batch: RowBatch, path: Path) -> None:
    """See that all texts and keys can be stored.

    Raises:
        ValueError: one holds half of a surrogate pair, which JSON can spell and UTF-8 cannot hold.
    """
    try:
        "".join(text for texts in batch.texts for text in texts).encode()
        "".join(batch.keys).encode()
    except UnicodeEncodeError:
        for row, texts in enumerate(batch.texts):
            mine = "".join(texts) + (batch.keys[row] if batch.keys else "")
            if any("\ud800" <= letter <= "\udfff" for letter in mine):
                shown = mine[:_NUM_ORIGINALS_SHOWN]
                msg = f"{path}, {batch.place_of(row)}: holds half of a surrogate pair: {shown!a}"
                raise ValueError(f"{msg}; repair the file") from None
        raise


def json_object(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object that some bytes hold.

    Raises:
        ValueError: they hold none.
    """
    try:
        return {**json.loads(raw.decode("utf-8-sig"))}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON object ({error}): {raw[:80]!r}") from None
