"""The index of a data set: one row per usable sample, memory-mapped by every rank.

An index is a folder that `tools/index_shards.py` writes:

    samples.arrow             one row per sample, in the order of the sorted shards
    captions/<source>.arrow   one row per text
    rejected.arrow            one row per sample that cannot be used, with the reason
    index.json                shards, counts, fingerprint

The row of a sample in `samples.arrow` is its id everywhere else.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow_file import column_view, map_batch
from pipeline.captions import CaptionTable

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.arrow"
REJECTED_FILE = "rejected.arrow"
CAPTIONS_DIR = "captions"
DEFAULT_SOURCE = "caption"
_EDGE_BYTES = 64 * 1024

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [pa.field(name, pa.large_string()) for name in ("key", "shard", "member", "reason", "detail")]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """A shard as it was when it was indexed."""

    path: Path
    """Absolute and resolved."""
    size_bytes: int
    """Length of the file."""
    mtime_ns: int
    """Time of its last change, in nanoseconds since the epoch."""
    head_tail_crc32: int
    """CRC-32 over its first and its last 64 KiB."""
    num_samples: int
    """Usable samples in it, at least 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Index:
    """An opened index. The arrays are read-only views of the mapped file."""

    directory: Path
    """The folder, resolved."""
    fingerprint: str
    """SHA-256 (hex) over keys, shard names, offsets, sizes and token ids: the data set's name."""
    tokenizer: str
    """Which tokenizer made the token ids."""
    caption_spec: str
    """Where the default captions came from: `txt` or `json:FIELD`."""
    shards: tuple[ShardRecord, ...]
    """Shards with at least one usable sample, sorted by path."""
    rejections: dict[str, int]
    """Samples that cannot be used, counted by reason."""
    shard: NDArray[np.int32]
    """[M] number of the sample's shard in `shards`, ascending."""
    offset: NDArray[np.int64]
    """[M] first byte of the image in its shard."""
    size: NDArray[np.int32]
    """[M] length of the image file in bytes."""
    width: NDArray[np.int32]
    """[M] pixels, after the EXIF orientation is applied."""
    height: NDArray[np.int32]
    """[M] pixels, after the EXIF orientation is applied."""
    label: NDArray[np.int32]
    """[M] class of a labelled set; -1 where the sample has no `.cls`."""
    table: pa.RecordBatch = field(repr=False)
    """All columns of `samples.arrow`, for columnar work with pyarrow."""

    @property
    def num_samples(self) -> int:
        """M, the number of usable samples."""
        return len(self.shard)

    @property
    def num_rejected(self) -> int:
        """Number of samples that cannot be used."""
        return sum(self.rejections.values())

    @property
    def sources(self) -> list[str]:
        """Names of the caption sources, sorted."""
        return sorted(path.stem for path in (self.directory / CAPTIONS_DIR).glob("*.arrow"))

    def keys(self, ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Keys of the samples `ids`."""
        return self.table.column("key").take(pa.array(ids, pa.int64())).to_pylist()

    def captions(self, source: str = DEFAULT_SOURCE) -> CaptionTable:
        """Map one caption source.

        Raises:
            ValueError: there is no such source (the message lists those there are), or its file
                is damaged.
        """
        if source not in self.sources:
            known = ", ".join(self.sources) or "none"
            msg = f"the index {self.directory} has no caption source {source!r}"
            raise ValueError(f"{msg}; it has: {known}")
        return CaptionTable(self.directory / CAPTIONS_DIR / f"{source}.arrow", self.num_samples)

    def check_shards(self) -> None:
        """See that the shards are still those that were indexed; reads no data unless it must.

        A shard whose modification time alone differs (a copy) passes if its first and last 64 KiB
        are what they were.

        Raises:
            FileNotFoundError: shards are gone; the message names them.
            ValueError: shards have changed; the message names them and how to index again.
        """
        missing = [record.path for record in self.shards if not record.path.is_file()]
        if missing:
            msg = f"{len(missing)} of {len(self.shards)} shards of {self.directory} are gone"
            raise FileNotFoundError(f"{msg}: {_listed(missing)}; {self._how_to_reindex()}")
        changed = [record.path for record in self.shards if not _is_unchanged(record)]
        if changed:
            msg = f"{len(changed)} of {len(self.shards)} shards changed after they were indexed"
            raise ValueError(f"{msg}: {_listed(changed)}; {self._how_to_reindex()}")

    def _how_to_reindex(self) -> str:
        folders = sorted({str(record.path.parent) for record in self.shards})
        captions = "" if self.caption_spec == "txt" else f" --captions {self.caption_spec}"
        command = f"python tools/index_shards.py {' '.join(folders)} --out {self.directory}"
        return f"index again with `{command}{captions}`"

    def __reduce__(self) -> tuple[Any, ...]:
        """Map the files again in the process that unpickles this."""
        return open_index, (self.directory,)


def open_index(index_dir: Path) -> Index:
    """Open an index; its tables are mapped, not read.

    Raises:
        FileNotFoundError: there is no index; the message names the command that makes one.
        ValueError: the index is damaged or of another format version.
    """
    directory = Path(index_dir).resolve()
    manifest = read_manifest(directory)
    try:
        _check_file_sizes(directory, manifest["files"])
        table = map_batch(directory / SAMPLES_FILE, SAMPLE_SCHEMA)
        map_batch(directory / REJECTED_FILE, REJECTED_SCHEMA)
        shards = tuple(_shard_record(directory, entry) for entry in manifest["shards"])
        index = Index(
            directory=directory,
            fingerprint=manifest["fingerprint"],
            tokenizer=manifest["tokenizer"],
            caption_spec=manifest["captions"],
            shards=shards,
            rejections=dict(manifest["rejections"]),
            table=table,
            **{name: column_view(table, name) for name in SAMPLE_SCHEMA.names if name != "key"},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(_damaged(directory, f"{INDEX_FILE} lacks {error}")) from error
    counted = sum(record.num_samples for record in shards)
    if not index.num_samples == manifest["num_samples"] == counted:
        found = f"{index.num_samples} rows, {counted} samples in {len(shards)} shards"
        raise ValueError(_damaged(directory, found))
    return index


def read_manifest(directory: Path) -> dict[str, Any]:
    """The content of an index's `index.json`.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: the file is damaged or of another format version.
    """
    path = directory / INDEX_FILE
    if not path.is_file():
        command = f"python tools/index_shards.py SHARDS --out {directory}"
        raise FileNotFoundError(f"there is no index in {directory}; make one with `{command}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_damaged(directory, f"{INDEX_FILE}: {error!r}")) from error
    if version != FORMAT_VERSION:
        msg = f"{path} has format version {version}, this code reads version {FORMAT_VERSION}"
        raise ValueError(f"{msg}; index the shards again or use the code that made it")
    return manifest


def stored_path(path: Path, directory: Path) -> str:
    """A shard's path as `index.json` holds it.

    Relative to the folder that the index lies in if the shard lies beneath that, so that the two
    can be moved together; absolute otherwise.
    """
    parent = directory.resolve().parent
    return (path.relative_to(parent) if path.is_relative_to(parent) else path).as_posix()


def head_tail_crc32(path: Path) -> int:
    """CRC-32 over the first and the last 64 KiB of a file, which overlap in a short one."""
    with path.open("rb") as file:
        crc = zlib.crc32(file.read(_EDGE_BYTES))
        size_bytes = file.seek(0, 2)
        file.seek(max(0, size_bytes - _EDGE_BYTES))
        return zlib.crc32(file.read(_EDGE_BYTES), crc)


def _shard_record(directory: Path, entry: dict[str, Any]) -> ShardRecord:
    return ShardRecord(
        path=directory.parent / entry["path"],
        size_bytes=entry["size_bytes"],
        mtime_ns=entry["mtime_ns"],
        head_tail_crc32=entry["head_tail_crc32"],
        num_samples=entry["num_samples"],
    )


def _is_unchanged(record: ShardRecord) -> bool:
    status = record.path.stat()
    if status.st_size != record.size_bytes:
        return False
    if status.st_mtime_ns == record.mtime_ns:
        return True
    return head_tail_crc32(record.path) == record.head_tail_crc32


def _check_file_sizes(directory: Path, sizes: dict[str, int]) -> None:
    for name, size_bytes in sizes.items():
        path = directory / name
        if not path.is_file():
            raise ValueError(_damaged(directory, f"{name} is missing"))
        found = path.stat().st_size
        if found != size_bytes:
            raise ValueError(_damaged(directory, f"{name} has {found} bytes, not {size_bytes}"))


def _damaged(directory: Path, what: str) -> str:
    command = f"python tools/index_shards.py SHARDS --out {directory}"
    return f"the index {directory} is damaged ({what}); make it again with `{command}`"


def _listed(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)
