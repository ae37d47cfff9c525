"""A shard as an index knows it, and how `index.json` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from tessera.pipeline.storage import file_state, head_tail_crc32, is_remote

_RECORD_FIELDS = ("size_bytes", "mtime_ns", "version", "head_tail_crc32", "num_samples")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """A shard as it was when it was indexed."""

    location: str
    """Absolute path, or URL."""
    size_bytes: int
    """Length of the file."""
    mtime_ns: int
    """Time of its last change, in nanoseconds since the epoch; 0 if it is remote."""
    version: str
    """ETag or the like of a remote file; empty if it is local."""
    head_tail_crc32: int
    """CRC-32 over its first and its last 64 KiB."""
    num_samples: int
    """Usable samples in it."""
    source: str = ""
    """The data set that it is of, whose keys are unique; empty if there is but one."""

    def is_unchanged(self, give_up: Event | None = None) -> bool:
        """Whether the file is still what was indexed.

        A file whose time or version alone differs (a copy) passes if its first and last 64 KiB are
        what they were.

        Args:
            give_up: once it is set, remote storage that failed is not asked again.

        Raises:
            FileNotFoundError: it is gone.
            OSError: it cannot be asked for.
        """
        state = file_state(self.location, give_up)
        if state.size_bytes != self.size_bytes:
            return False
        if (state.mtime_ns, state.version) == (self.mtime_ns, self.version):
            return bool(state.mtime_ns or state.version) or self._has_same_edges(give_up)
        return self._has_same_edges(give_up)

    def _has_same_edges(self, give_up: Event | None) -> bool:
        return head_tail_crc32(self.location, give_up) == self.head_tail_crc32


def stored_location(location: str, directory: Path) -> str:
    """A shard's location as `index.json` holds it.

    Relative to the folder that the index lies in if the shard lies beneath that, so that the two
    can be moved together; absolute otherwise.
    """
    parent = directory.resolve().parent
    if is_remote(location) or not Path(location).is_relative_to(parent):
        return location
    return Path(location).relative_to(parent).as_posix()


def shard_records(directory: Path, entries: Sequence[dict[str, Any]]) -> tuple[ShardRecord, ...]:
    """Records of the shards that a manifest lists; a missing field is a KeyError."""
    return tuple(
        ShardRecord(
            location=absolute_location(entry["location"], directory),
            source=entry.get("source", ""),
            **{name: entry[name] for name in _RECORD_FIELDS},
        )
        for entry in entries
    )


def shard_entry(record: ShardRecord, directory: Path) -> dict[str, Any]:
    """A record as a manifest lists it."""
    fields = {name: getattr(record, name) for name in _RECORD_FIELDS}
    source = {"source": record.source} if record.source else {}
    return {"location": stored_location(record.location, directory), **fields, **source}


def absolute_location(stored: str, directory: Path) -> str:
    """The inverse of `stored_location`."""
    return stored if is_remote(stored) else str(directory.resolve().parent / stored)
