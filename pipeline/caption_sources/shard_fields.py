"""Captions that lie in the shards' own json, read in one pass over the tars of an index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tessera.pipeline.caption_sources.rows import RowBatch, check_text, json_object
from tessera.pipeline.index import Index, ShardRecord
from tessera.pipeline.index.clues import texts_at
from tessera.pipeline.index.tar_walk import TarError, group_members, walk_tar
from tessera.pipeline.storage import open_binary
from tessera.pipeline.tables import texts_of

_MAX_JSON_BYTES = 16 * 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFieldReader:
    """Fields of the json of every sample."""

    index: Index
    """Its shards are read; rows are its samples, in its order."""
    fields: tuple[str, ...]
    """Names in the json; each may hold a text, a list of texts, or be absent."""

    @property
    def files(self) -> tuple[Path, ...]:
        """No files but the shards, which the index knows."""
        return ()

    def batches(self) -> Iterator[RowBatch]:
        """The samples of one shard at a time; a sample without a json has no texts."""
        last = np.cumsum(self.index.shard_sizes).tolist()
        for number, (record, stop) in enumerate(zip(self.index.shards, last, strict=True)):
            start = stop - record.num_samples
            keys = self.index.keys_in_shard(number)
            found = self._texts_of_shard(record, set(keys))
            batch = RowBatch(
                first_row=start,
                texts=[found.get(key, []) for key in keys],
                where=[f"sample {key}" for key in keys],
            )
            check_text(batch, Path(record.location))
            yield batch

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
                    where = f"{location}, {member.name}"
                    document = _read_json(file, member.offset, member.num_bytes, where)
                    found[group.key] = self._texts(document, where)
            except TarError as error:
                raise ValueError(f"{location} cannot be read: {error}") from error
        return found

    def _texts(self, document: dict[str, object], where: str) -> list[str]:
        texts = []
        for name in self.fields:
            try:
                texts += texts_of(texts_at(document, name))
            except ValueError as error:
                raise ValueError(f"{where}, field {name!r}: {error}") from None
        return texts


def _read_json(file: BinaryIO, offset: int, num_bytes: int, where: str) -> dict[str, object]:
    if num_bytes > _MAX_JSON_BYTES:
        raise ValueError(f"{where}: {num_bytes:,} bytes exceed the limit of {_MAX_JSON_BYTES:,}")
    file.seek(offset)
    return json_object(file.read(num_bytes), where)
