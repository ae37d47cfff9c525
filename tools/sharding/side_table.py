"""The table beside a shard: which file a key came from, and the further columns of its row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tessera.pipeline.index.cells import is_null
from tessera.pipeline.index.options import DHASH, SHA256
from tessera.tools.sharding.samples import Draft, Source

KEY, FILE_NAME = "key", "file_name"


class SideTable:
    """Writes `NNNNN.parquet` beside `NNNNN.tar`, as img2dataset does."""

    def __init__(self, source: Source) -> None:
        """Find out what the columns hold, over all samples of the source."""
        self._places = {draft.number: place for place, draft in enumerate(source.drafts)}
        self._kept = pa.table(
            {
                f"source_{name}" if name in (KEY, FILE_NAME) else name: _column(
                    [draft.kept.get(name) for draft in source.drafts]
                )
                for name in source.columns
            }
        )
        has_names = source.fetch is not None or any(draft.file_name for draft in source.drafts)
        self.columns = [*([FILE_NAME] if has_names else []), *self._kept.schema.names]
        """Names of the columns beside the key."""
        self._rows: list[tuple[str, str, int]] = []

    @property
    def specs(self) -> tuple[str, ...]:
        """The columns as an index is asked for them; a name that none can have is left out."""
        numbers = {f.name for f in self._kept.schema if f.type in (pa.int64(), pa.float64())}
        return tuple(
            f"{name}:float" if name in numbers else name
            for name in self.columns
            if name.isidentifier() and name not in (SHA256, DHASH)
        )

    def add(self, key: str, draft: Draft, file_name: str) -> None:
        """Take up a sample of the shard that is being written."""
        self._rows.append((key, file_name, self._places[draft.number]))

    def write(self, tar: Path) -> None:
        """Write the table of a shard that is complete."""
        rows, self._rows = self._rows, []
        if not self.columns or not rows:
            return
        keys, names, places = zip(*rows, strict=True)
        found = {KEY: pa.array(keys, pa.string()), FILE_NAME: pa.array(names, pa.string())}
        kept = self._kept.take(pa.array(places))
        found |= {name: kept.column(name) for name in kept.schema.names}
        table = pa.table({name: found[name] for name in (KEY, *self.columns)})
        pq.write_table(table, tar.with_suffix(".parquet"))


def _column(values: Sequence[Any]) -> pa.Array:
    """Truth values, whole numbers or fractions where all values are; else texts."""
    try:
        found = pa.array(values, from_pandas=True)
        if found.type in (pa.bool_(), pa.int64(), pa.float64()):
            return found
    except (pa.ArrowException, OverflowError):
        pass  # they are of several kinds
    return pa.array(map(_as_text, values), pa.string())


def _as_text(value: Any) -> str | None:
    if is_null(value) or isinstance(value, str):
        return None if is_null(value) else value
    return json.dumps(value, ensure_ascii=False, default=str)
