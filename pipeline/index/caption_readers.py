"""Readers of captions: tables of other people, and the json in an index's own shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tessera.pipeline.index import Index, ShardRecord
from tessera.pipeline.index.cells import is_null, is_storable, texts_of, too_long
from tessera.pipeline.index.clues import texts_at
from tessera.pipeline.index.foreign_tables import BadRow, Row
from tessera.pipeline.index.open_table import TableOptions, open_table
from tessera.pipeline.index.tar_walk import TarError, TarMember, group_members, walk_tar
from tessera.pipeline.storage import open_binary

ROWS_AT_ONCE = 4096
"""Rows that readers hand over together."""
_MAX_JSON_BYTES = 16 * 1024**2


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
        """All rows in order, a bounded number at a time.

        Raises:
            ValueError: a row cannot be read; the message names the file and the line.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TableReader:
    """Tables of one kind, one after the other."""

    files: tuple[Path, ...]
    """As `open_table` takes them."""
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
        keys = [self.key_column] if self.key_column else []
        batch = RowBatch(first_row=0)
        for row in table.rows([*keys, *self.text_columns]):
            if len(batch.texts) == ROWS_AT_ONCE:
                yield batch
                batch = RowBatch(first_row=batch.first_row + ROWS_AT_ONCE)
            try:
                values = _cells(row)
                if keys:
                    key = key_of(values[0])
                    batch.keys.append(stem_of(key) if self.stem else key)
                batch.texts.append(_texts(values[len(keys) :]))
                batch.where.append(row.where)
            except ValueError as error:
                # Rows of several files name theirs.
                place = f"{self.files[0]}, {row.where}" if len(self.files) == 1 else row.where
                raise ValueError(f"{place}: {error}") from None
        yield batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFieldReader:
    """Fields of the json of every sample, read in one pass over the tars of an index."""

    index: Index
    """Its shards are read; rows are its samples, in its order."""
    fields: tuple[str, ...]
    """Names in the json; each may hold a text, a list of texts, or be absent."""
    files: tuple[Path, ...] = ()
    """None but the shards, which the index knows."""

    def batches(self) -> Iterator[RowBatch]:
        """The samples of one shard at a time; a sample without a json has no texts."""
        start = 0
        for number, record in enumerate(self.index.shards):
            keys = self.index.keys_in_shard(number)
            found = self._texts_of_shard(record, set(keys))
            yield RowBatch(
                first_row=start,
                texts=[found.get(key, []) for key in keys],
                where=[f"sample {key}" for key in keys],
            )
            start += record.num_samples

    def _texts_of_shard(self, record: ShardRecord, wanted: set[str]) -> dict[str, list[str]]:
        location, options = record.location, self.index.scan_options
        found: dict[str, list[str]] = {}
        with open_binary(location) as file:
            try:
                members = walk_tar(file, record.size_bytes)
                for group in group_members(members, to_last_dot=options.key_to_last_dot):
                    member = group.members.get(options.json_suffix)
                    if member is None or group.key not in wanted or group.key in found:
                        continue
                    found[group.key] = self._texts_of(file, member, location)
            except TarError as error:
                raise ValueError(f"{location} cannot be read: {error}") from error
        return found

    def _texts_of(self, file: BinaryIO, member: TarMember, location: str) -> list[str]:
        try:
            document = _read_json(file, member)
            return _texts([texts_at(document, each) for each in self.fields])
        except ValueError as error:
            raise ValueError(f"{location}, {member.name}: {error}") from None


def _read_json(file: BinaryIO, member: TarMember) -> dict[str, Any]:
    if member.num_bytes > _MAX_JSON_BYTES:
        raise ValueError(f"{member.num_bytes:,} bytes exceed the limit of {_MAX_JSON_BYTES:,}")
    file.seek(member.offset)
    raw = file.read(member.num_bytes)
    try:
        return {**json.loads(raw.decode("utf-8-sig"))}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"no JSON object ({error}): {raw[:80]!r}") from None


def _cells(row: Row | BadRow) -> list[object]:
    if isinstance(row, Row):
        return row.values
    raise ValueError(row.detail)


def _texts(values: list[Any]) -> list[str]:
    """The texts of some cells.

    Raises:
        ValueError: a cell holds something else, or a text that cannot be stored.
    """
    texts = [text for value in values for text in texts_of(value)]
    if detail := next(filter(None, map(too_long, texts)), None):
        raise ValueError(detail)
    if not is_storable("".join(texts)):
        raise ValueError("it holds half of a surrogate pair, which UTF-8 cannot store")
    return texts


def key_of(value: object) -> str:
    """A key as text; empty for a null.

    Raises:
        ValueError: it has lost what it was, as numbers with a fraction and damaged bytes have.
    """
    if is_null(value):
        return ""
    if not isinstance(value, float):
        return value.decode() if isinstance(value, bytes) else str(value)
    raise ValueError(
        f"the key {value!r} is a number with a fraction, as pandas writes ids where one is "
        "missing: write the column as text"
    )


def stem_of(path: str) -> str:
    """The last part of a path or URL without its suffix."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name
