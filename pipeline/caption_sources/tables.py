"""Captions in tables: see `pipeline.tables` for what is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tessera.pipeline.caption_sources.rows import ROWS_AT_ONCE, RowBatch
from tessera.pipeline.tables import BadRow, Row, TableOptions, open_table, texts_of
from tessera.pipeline.tables.cells import too_long


@dataclass(frozen=True, kw_only=True, slots=True)
class TableReader:
    """Tables of one kind, one after the other."""

    files: tuple[Path, ...]
    """As `pipeline.tables.open_table` takes them."""
    text_columns: tuple[str, ...]
    """Columns of the texts; each may hold one text, a list of texts, or nothing."""
    key_column: str
    """Column that rows are joined by; empty if they are joined by their order."""
    stem: bool = False
    """The key is the last part of a path without its suffix: `a/b/000012.jpg` is `000012`."""
    options: TableOptions = field(default_factory=TableOptions)
    """How the files are to be read."""

    def batches(self) -> Iterator[RowBatch]:
        """See `Reader`."""
        table = open_table(self.files, self.options)
        columns = ([self.key_column] if self.key_column else []) + list(self.text_columns)
        batch = RowBatch(first_row=0)
        for row in table.rows(columns):
            if isinstance(row, BadRow):
                raise self._refusal(row.where, row.detail)
            if len(batch.texts) == ROWS_AT_ONCE:
                yield batch
                batch = RowBatch(first_row=batch.first_row + ROWS_AT_ONCE)
            self._add(row, batch)
        yield batch

    def _add(self, row: Row, batch: RowBatch) -> None:
        try:
            key, values = "", row.values
            if self.key_column:
                key, values = key_of(row.values[0]), row.values[1:]
                batch.keys.append(stem_of(key) if self.stem else key)
            texts = [text for value in values for text in texts_of(value)]
        except ValueError as error:
            raise self._refusal(row.where, str(error)) from None
        if detail := next(filter(None, map(too_long, texts)), None):
            raise self._refusal(row.where, detail)
        batch.texts.append(texts)
        batch.where.append(row.where)

    def _refusal(self, where: str, detail: str) -> ValueError:
        """Names the row; rows of several files name theirs."""
        place = f"{self.files[0]}, {where}" if len(self.files) == 1 else where
        return ValueError(f"{place}: {detail}")


def key_of(value: object) -> str:
    """A key as text; empty for a null.

    Raises:
        ValueError: it has lost what it was, as numbers with a fraction and damaged bytes have.
    """
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        if value != value:
            return ""
        raise ValueError(
            f"the key {value!r} is a number with a fraction, as pandas writes ids where one is "
            "missing: write the column as text"
        )
    return str(value)


def stem_of(path: str) -> str:
    """The last part of a path or URL without its suffix."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name
