"""Scans of single shards on disk, so that memory holds one at a time and a killed run goes on.

A stored scan is a folder of Arrow files with `scan.json`, which is written last: without it the
folder does not count.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tessera.pipeline.durable import write_text
from tessera.pipeline.index import (
    FORMAT_VERSION,
    REJECTED_FILE,
    REJECTED_SCHEMA,
    SAMPLE_SCHEMA,
    Index,
)
from tessera.pipeline.index.arrow_file import map_batch, write_batch
from tessera.pipeline.index.clues import Clues
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.rejection import Reason, Rejection
from tessera.pipeline.index.scan_shard import ShardScan
from tessera.pipeline.index.shard_record import (
    ShardRecord,
    absolute_location,
    shard_records,
    stored_location,
)
from tessera.pipeline.index.tokenizer import TOKENIZER_NAME

_SCAN_FILE = "scan.json"
_SCAN_VERSION = 2
TABLES = ("samples", "captions", "columns")


class Scan(Protocol):
    """What a shard holds, read from disk when it is asked for."""

    record: ShardRecord
    """The file, and how many usable samples are in it."""
    problem: str
    """What is wrong with the tar as a whole; empty if nothing is."""
    num_empty_texts: int
    """Empty texts left out of samples that have others."""
    clues: Clues
    """What else was seen in it."""

    def rejections(self) -> list[Rejection]:
        """Samples that cannot be used, in the order of the tar."""
        ...

    def table(self, name: str) -> pa.RecordBatch:
        """`samples`, `captions` (`sample` counts within the shard) or `columns`."""
        ...


class StoredScan:
    """A scan that was written by `store_scan`."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self._folder = folder
        self.record = ShardRecord(**content["record"])
        self.problem: str = content["problem"]
        self.num_empty_texts: int = content["num_empty_texts"]
        self.clues = Clues.from_json(content["clues"])

    def rejections(self) -> list[Rejection]:
        """Read them."""
        return _rejections(map_batch(self._folder / "rejected.arrow", REJECTED_SCHEMA))

    def table(self, name: str) -> pa.RecordBatch:
        """Map one table of the scan."""
        return map_batch(self._folder / f"{name}.arrow")


class IndexedScan:
    """The rows of one shard in an index that is there already."""

    def __init__(
        self,
        index: Index,
        record: ShardRecord,
        rows: slice,
        rejected: pa.RecordBatch,
        about: dict[str, Any],
    ) -> None:
        self._index = index
        self._rows = rows
        self._rejected = rejected
        self.record = record
        self.problem: str = about.get("problem", "")
        self.num_empty_texts: int = about.get("num_empty_texts", 0)
        self.clues = Clues.from_json(about.get("clues", {}))

    def rejections(self) -> list[Rejection]:
        """Read them from the index."""
        found = _rejections(self._rejected)
        return [each._replace(shard=self.record.location) for each in found]

    def table(self, name: str) -> pa.RecordBatch:
        """Rows of the index's own tables, numbered as if the shard stood alone."""
        first, count = self._rows.start, self._rows.stop - self._rows.start
        if name == "samples":
            return self._index.table.slice(first, count)
        if name == "captions":
            return self._index.captions().of_samples(first, first + count)
        names = self._index.column_names
        arrays = [self._index.column(each).slice(first, count) for each in names]
        fields = [
            pa.field(each, array.type, nullable=False)
            for each, array in zip(names, arrays, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def store_scan(scan: ShardScan, folder: Path, options: ScanOptions) -> None:
    """Write a scan beneath `folder`, in place of an older one of the same shard."""
    place = _place(folder, scan.record.location)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in TABLES:
        write_batch(place / f"{name}.arrow", getattr(scan, name))
    write_batch(place / "rejected.arrow", rejected_batch(scan.rejected))
    content = {
        **_settings(options),
        "record": asdict(scan.record),
        "problem": scan.problem,
        "num_empty_texts": scan.num_empty_texts,
        "clues": scan.clues.to_json(),
    }
    write_text(place / _SCAN_FILE, json.dumps(content))


def load_scan(folder: Path, location: str, options: ScanOptions) -> StoredScan | None:
    """The stored scan of a shard, if there is one made with these options."""
    place = _place(folder, location)
    try:
        content = json.loads((place / _SCAN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    wanted = _settings(options)
    return StoredScan(place, content) if {k: content.get(k) for k in wanted} == wanted else None


def scans_of_index(
    index: Index, manifest: dict[str, Any], options: ScanOptions
) -> dict[str, IndexedScan]:
    """What an index says of its shards, by location, as far as it can stand in for a new scan.

    Shards with repeated keys are left out: their dropped samples are in no table, and would be
    wanted if the shard that has the same keys went away.
    """
    if not can_stand_in(manifest, options) or (index.plain < 0).any():
        return {}
    directory = index.directory
    rejected = map_batch(directory / REJECTED_FILE, REJECTED_SCHEMA)
    places = _rejected_places(rejected, directory)
    scans: dict[str, IndexedScan] = {}
    first = 0
    for record in (*index.shards, *shard_records(directory, manifest["unused_shards"])):
        rows = slice(first, first + record.num_samples)
        first = rows.stop
        found = rejected.slice(*places.get(record.location, (0, 0)))
        if Reason.DUPLICATE_KEY not in found.column("reason").unique().to_pylist():
            about = manifest["about"].get(stored_location(record.location, directory), {})
            scans[record.location] = IndexedScan(index, record, rows, found, about)
    return scans


def rejected_batch(rejected: list[Rejection]) -> pa.RecordBatch:
    """Rejections as rows."""
    columns = zip(*rejected, strict=True) if rejected else [()] * len(REJECTED_SCHEMA)
    arrays = [pa.array(map(str, column), pa.large_string()) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTED_SCHEMA)


def _rejections(batch: pa.RecordBatch) -> list[Rejection]:
    return [Rejection(**row) for row in batch.to_pylist()]


def _rejected_places(rejected: pa.RecordBatch, directory: Path) -> dict[str, tuple[int, int]]:
    """First row and number of rows of each shard, whose rows are neighbours."""
    if not rejected.num_rows:
        return {}
    shards = rejected.column("shard").dictionary_encode()
    numbers = shards.indices.to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    stored = (shards.dictionary[numbers[start]].as_py() for start in starts)
    lengths = np.diff([*starts, rejected.num_rows]).tolist()
    return {
        absolute_location(location, directory): (start, length)
        for location, start, length in zip(stored, starts, lengths, strict=True)
    }


def can_stand_in(manifest: dict[str, Any], options: ScanOptions) -> bool:
    """Whether an index was made with these options."""
    try:
        stored = ScanOptions.from_json(manifest["options"])
    except TypeError:
        return False
    return manifest["tokenizer"] == TOKENIZER_NAME and stored == options


def _place(folder: Path, location: str) -> Path:
    return folder / hashlib.sha256(location.encode()).hexdigest()[:24]


def _settings(options: ScanOptions) -> dict[str, Any]:
    """What must be the same for a stored scan to be used."""
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": TOKENIZER_NAME,
        "options": options.to_json(),
        "scan_version": _SCAN_VERSION,
        "columns": SAMPLE_SCHEMA.names,
    }
