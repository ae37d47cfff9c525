"""The table beside a shard: which file a key came from, and the further columns of its row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tessera.pipeline.index.options import DHASH, SHA256
from tessera.pipeline.sharding.samples import Draft, Source
from tessera.pipeline.tables.cells import is_null

KEY = "key"
FILE_NAME = "file_name"
_INT64 = range(-(2**63), 2**63)


class SideTable:
    """Writes `NNNNN.parquet` beside `NNNNN.tar`, as img2dataset does."""

    def __init__(self, source: Source) -> None:
        """Find out what the columns hold, over all samples of the source."""
        has_names = source.fetch is not None or any(draft.file_name for draft in source.drafts)
        self._stored = {name: name for name in source.columns}
        for taken in {KEY, FILE_NAME} & self._stored.keys():
            self._stored[taken] = f"source_{taken}"
        kinds = {
            stored: _kind([draft.kept.get(name) for draft in source.drafts])
            for name, stored in self._stored.items()
        }
        names = {FILE_NAME: pa.string()} if has_names else {}
        self._schema = pa.schema({KEY: pa.string(), **names, **kinds})
        self._rows: list[dict[str, Any]] = []

    @property
    def columns(self) -> list[str]:
        """Names of the columns beside the key."""
        return self._schema.names[1:]

    @property
    def specs(self) -> tuple[str, ...]:
        """The columns as an index is asked for them; a name that none can have is left out."""
        numbers = {pa.int64(), pa.float64()}
        return tuple(
            f"{field.name}:float" if field.type in numbers else field.name
            for field in list(self._schema)[1:]
            if field.name.isidentifier() and field.name not in (SHA256, DHASH)
        )

    def add(self, key: str, draft: Draft, file_name: str) -> None:
        """Take up a sample of the shard that is being written."""
        row = {KEY: key, FILE_NAME: file_name}
        for name, stored in self._stored.items():
            row[stored] = _value(draft.kept.get(name), self._schema.field(stored).type)
        self._rows.append(row)

    def write(self, tar: Path) -> None:
        """Write the table of a shard that is complete."""
        rows, self._rows = self._rows, []
        if self.columns:
            pq.write_table(pa.Table.from_pylist(rows, self._schema), tar.with_suffix(".parquet"))


def _kind(values: Sequence[Any]) -> pa.DataType:
    """The narrowest of truth value, whole number, number and text that holds all values."""
    there = [value for value in values if not is_null(value)]
    if there and all(isinstance(value, bool) for value in there):
        return pa.bool_()
    if there and all(_is_whole(value) for value in there):
        return pa.int64()
    if there and all(isinstance(value, float) or _is_whole(value) for value in there):
        return pa.float64()
    return pa.string()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _INT64


def _value(value: Any, kind: pa.DataType) -> Any:
    if is_null(value):
        return None
    if kind == pa.float64():
        return float(value)
    if kind != pa.string() or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
