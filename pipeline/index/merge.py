"""Join the scans of all shards into the tables of an index, one shard in memory at a time.

Whatever the size of the set, what grows in memory is some 8 bytes for each sample and each text,
to find what is repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index import open as layout
from tessera.pipeline.index.arrow_file import column_view, list_parts, string_parts
from tessera.pipeline.index.captions import CAPTION_SCHEMA
from tessera.pipeline.index.clues import Clues
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.rejection import Reason, Rejection
from tessera.pipeline.index.scan_store import TABLES, Scan, rejected_batch
from tessera.pipeline.index.shard_record import stored_location
from tessera.pipeline.index.spool import TableSpool
from tessera.pipeline.index.survey import Repetition, Survey
from tessera.pipeline.index.tokenizer import TOKENIZER_NAME

_NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What was written."""

    num_samples: int
    """Usable samples."""
    num_texts: int
    """Their texts."""
    fingerprint: str
    """SHA-256 (hex) that names the data set."""
    shards: list[layout.ShardRecord]
    """Shards with at least one usable sample; `samples.shard` counts in this list."""
    unused_shards: list[layout.ShardRecord]
    """Shards without."""
    rejections: dict[str, int]
    """Rejected samples by reason, most frequent first."""
    examples: dict[str, list[Rejection]]
    """The first few of each reason."""
    survey: Survey
    """Sizes and lengths."""
    repetitions: dict[str, Repetition]
    """Repeated texts, files and pictures."""
    clues: Clues
    """What else the scans saw."""


def merge(scans: Sequence[Scan], options: ScanOptions, folder: Path, directory: Path) -> Merged:
    """Write the tables of an index.

    Args:
        scans: of all shards, in the order in which they are to stand.
        options: what the scans were made with.
        folder: where the files are written, with temporary ones beside them.
        directory: where the index will lie.

    Raises:
        OSError: the disk is full, or a scan is gone.
    """
    repeated = _repeated_keys(scans)
    writer = _Writer(folder, directory, options)
    for number, scan in enumerate(scans):
        writer.add(scan, repeated.get(number, {}), scans)
    return writer.finish()


def _repeated_keys(scans: Sequence[Scan]) -> dict[int, dict[int, int]]:
    """Rows whose key an earlier row of their source has: shard number to row to shard of that.

    Hashes find the candidates in 8 bytes a sample; the keys themselves decide.
    """
    hashes = [
        np.fromiter(map(hash, scan.table("samples").column("key").to_pylist()), np.int64)
        ^ hash(scan.record.source)
        if scan.record.num_samples
        else np.empty(0, np.int64)
        for scan in scans
    ]
    ordered = np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.int64)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    first: dict[tuple[str, str], int] = {}
    repeated: dict[int, dict[int, int]] = defaultdict(dict)
    if not len(suspects):
        return repeated
    for number, scan in enumerate(scans):
        rows = np.flatnonzero(np.isin(hashes[number], suspects))
        if not len(rows):
            continue
        keys = scan.table("samples").column("key").take(pa.array(rows)).to_pylist()
        for row, key in zip(rows.tolist(), keys, strict=True):
            place = scan.record.source, key
            if place in first:
                repeated[number][row] = first[place]
            else:
                first[place] = number
    return repeated


class _Writer:
    """The tables while they grow."""

    def __init__(self, folder: Path, directory: Path, options: ScanOptions) -> None:
        self._folder = folder
        self._directory = directory
        self._samples = TableSpool(folder, "samples", layout.SAMPLE_SCHEMA)
        self._captions = TableSpool(folder, "captions", CAPTION_SCHEMA)
        self._rejected = TableSpool(folder, "rejected", layout.REJECTED_SCHEMA)
        self._columns = {
            name: TableSpool(folder, f"column.{name}", _column_schema(kind))
            for name, kind in options.column_types.items()
        }
        self._digest = _Fingerprint()
        self._survey = Survey()
        self._shards: list[layout.ShardRecord] = []
        self._unused: list[layout.ShardRecord] = []
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[Rejection]] = defaultdict(list)
        self._clues = Clues()

    def add(self, scan: Scan, repeated: dict[int, int], scans: Sequence[Scan]) -> None:
        """Write a shard's rows but those whose key came before."""
        self._clues.add(scan.clues)
        samples, captions, columns = (scan.table(name) for name in TABLES)
        rejected = scan.rejections()
        if repeated:
            rejected += _duplicates(scan, samples, repeated, scans)
            elsewhere = sum(scans[first] is not scan for first in repeated.values())
            self._clues.num_repeated_elsewhere += elsewhere
            samples, captions, columns = _without(list(repeated), samples, captions, columns)
        self._add_rejected(rejected)
        record = replace(scan.record, num_samples=samples.num_rows)
        if not samples.num_rows:
            self._unused.append(record)
            return
        owners = column_view(captions, "sample") + self._samples.num_rows
        number = np.full(samples.num_rows, len(self._shards), np.int32)
        samples = _with_column(samples, "shard", number)
        captions = _with_column(captions, "sample", owners)
        self._shards.append(record)
        self._digest.add(samples, captions)
        self._survey.add(samples, captions, columns)
        self._samples.append(samples)
        self._captions.append(captions)
        for name, spool in self._columns.items():
            spool.append(pa.RecordBatch.from_arrays([columns.column(name)], schema=spool.schema))

    def finish(self) -> Merged:
        """Write the files."""
        (self._folder / layout.CAPTIONS_DIR).mkdir(exist_ok=True)
        samples = self._samples.write(self._folder / layout.SAMPLES_FILE)
        captions = self._captions.write(
            self._folder / layout.CAPTIONS_DIR / f"{layout.DEFAULT_SOURCE}.arrow"
        )
        self._rejected.write(self._folder / layout.REJECTED_FILE)
        if self._columns:
            (self._folder / layout.COLUMNS_DIR).mkdir(exist_ok=True)
        for name, spool in self._columns.items():
            spool.write(self._folder / layout.COLUMNS_DIR / f"{name}.arrow")
        names = [PurePosixPath(record.location).name for record in self._shards]
        return Merged(
            num_samples=samples.num_rows,
            num_texts=captions.num_rows,
            fingerprint=self._digest.hexdigest(names, samples.num_rows, captions.num_rows),
            shards=self._shards,
            unused_shards=self._unused,
            rejections=dict(self._counts.most_common()),
            examples=dict(self._examples),
            survey=self._survey,
            repetitions=self._survey.repetitions(captions, samples.column("key")),
            clues=self._clues,
        )

    def _add_rejected(self, rejected: list[Rejection]) -> None:
        for each in rejected:
            self._counts[str(each.reason)] += 1
            if len(self._examples[each.reason]) < _NUM_EXAMPLES:
                self._examples[each.reason].append(each)
        stored = [
            each._replace(shard=stored_location(each.shard, self._directory)) for each in rejected
        ]
        self._rejected.append(rejected_batch(stored))


class _Fingerprint:
    """SHA-256 over all that decides what a run sees; the folder of the shards does not.

    Each column has a digest of its own, so that it comes out the same however the rows arrive.
    """

    def __init__(self) -> None:
        self._digests = [hashlib.sha256() for _ in range(8)]

    def add(self, samples: pa.RecordBatch, captions: pa.RecordBatch) -> None:
        """Take in the rows of a shard, numbered as they are in the whole set."""
        key_offsets, key_bytes = string_parts(samples.column("key"))
        token_offsets, token_ids = list_parts(captions.column("tokens"))
        columns = (
            np.diff(key_offsets),
            key_bytes,
            *(column_view(samples, name) for name in ("shard", "offset", "size")),
            np.diff(token_offsets),
            token_ids[token_offsets[0] : token_offsets[-1]],
            column_view(captions, "sample"),
        )
        for digest, column in zip(self._digests, columns, strict=True):
            digest.update(np.ascontiguousarray(column).data)

    def hexdigest(self, shard_names: list[str], num_samples: int, num_texts: int) -> str:
        """The digest of all that was taken in."""
        whole = hashlib.sha256(
            f"tessera index {layout.FORMAT_VERSION}\0{TOKENIZER_NAME}\0".encode()
        )
        whole.update(json.dumps([shard_names, num_samples, num_texts]).encode())
        for digest in self._digests:
            whole.update(digest.digest())
        return whole.hexdigest()


def _duplicates(
    scan: Scan, samples: pa.RecordBatch, repeated: dict[int, int], scans: Sequence[Scan]
) -> list[Rejection]:
    """Rejections of the samples whose key came before."""
    keys = samples.column("key").take(pa.array(list(repeated))).to_pylist()
    location = scan.record.location
    rejections: list[Rejection] = []
    for key, number in zip(keys, repeated.values(), strict=True):
        first = scans[number].record.location
        where = "earlier in this shard" if first == location else f"in {first}"
        detail = f"the key {key} is already used {where}"
        rejections.append(Rejection(key, location, "", Reason.DUPLICATE_KEY, detail))
    return rejections


def _without(
    rows: list[int], samples: pa.RecordBatch, captions: pa.RecordBatch, columns: pa.RecordBatch
) -> tuple[pa.RecordBatch, pa.RecordBatch, pa.RecordBatch]:
    """The tables of a shard without some of its samples."""
    keep = np.ones(samples.num_rows, dtype=bool)
    keep[rows] = False
    owners = column_view(captions, "sample")
    kept_captions = captions.filter(pa.array(keep[owners]))
    renumbered = (np.cumsum(keep) - 1)[owners[keep[owners]]]
    mask = pa.array(keep)
    kept_columns = columns.filter(mask) if columns.num_columns else columns
    return samples.filter(mask), _with_column(kept_captions, "sample", renumbered), kept_columns


def _with_column(batch: pa.RecordBatch, name: str, values: NDArray[np.generic]) -> pa.RecordBatch:
    place = batch.schema.get_field_index(name)
    return batch.set_column(place, batch.schema.field(place), pa.array(values))


def _column_schema(kind: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(layout.COLUMN_FIELD, kind, nullable=False)])
