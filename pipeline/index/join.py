"""Join the scans of all shards to the tables of an index, one shard in memory at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from tessera.pipeline.index import open as layout
from tessera.pipeline.index.arrow_file import (
    TableWriter,
    lengths,
    list_parts,
    map_batch,
    string_parts,
)
from tessera.pipeline.index.captions import CAPTION_SCHEMA
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.queries import Queries
from tessera.pipeline.index.rejection import Reason, Rejection
from tessera.pipeline.index.scan import ShardScan, captions_of, usable
from tessera.pipeline.index.shard_record import ShardRecord, stored_location
from tessera.pipeline.index.tokenizer import TOKENIZER_NAME

CAPTIONS_FILE = f"{layout.CAPTIONS_DIR}/{layout.DEFAULT_SOURCE}.arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """What was written."""

    shards: list[ShardRecord]
    """Shards with at least one usable sample; `samples.shard` counts in this list."""
    unused_shards: list[ShardRecord]
    """Shards without."""
    num_repeated_elsewhere: int
    """Samples left out because another shard of their source has their key."""


def join_scans(
    scans: Sequence[ShardScan],
    options: ScanOptions,
    folder: Path,
    directory: Path,
    queries: Queries,
) -> Joined:
    """Write the tables of an index.

    Args:
        scans: of all shards, in the order in which they are to stand.
        options: what the scans were made with.
        folder: where the files are written, with temporary ones beside them.
        directory: where the index will lie.
        queries: find the repeated keys.

    Raises:
        OSError: the disk is full, or a scan is gone.
    """
    repeated = queries.repeated_keys(scans)
    for name in (layout.CAPTIONS_DIR, *([layout.COLUMNS_DIR] if options.column_types else ())):
        (folder / name).mkdir()
    writers = {
        layout.SAMPLES_FILE: TableWriter(folder, "samples", layout.SAMPLE_SCHEMA),
        CAPTIONS_FILE: TableWriter(folder, "captions", CAPTION_SCHEMA),
        layout.REJECTED_FILE: TableWriter(folder, "rejected", layout.REJECTED_SCHEMA),
    }
    for name, kind in options.column_types.items():
        schema = pa.schema([pa.field(layout.COLUMN_FIELD, kind, nullable=False)])
        writers[f"{layout.COLUMNS_DIR}/{name}.arrow"] = TableWriter(folder, name, schema)
    shards: list[ShardRecord] = []
    unused: list[ShardRecord] = []
    for number, scan in enumerate(scans):
        table = scan.table()
        again = repeated.get(number, {})
        rejected = [*scan.rejected, *_duplicates(table, again, number, scans)]
        writers[layout.REJECTED_FILE].append(_rejected_batch(rejected, directory))
        keep = usable(table)
        keep[list(again)] = False
        record = replace(scan.record, num_samples=int(np.count_nonzero(keep)))
        if record.num_samples:
            _append(writers, table.filter(pa.array(keep)), len(shards), options)
        (shards if record.num_samples else unused).append(record)
    for name, writer in writers.items():
        writer.write(folder / name)
    elsewhere = sum(first != number for number, rows in repeated.items() for first in rows.values())
    return Joined(shards=shards, unused_shards=unused, num_repeated_elsewhere=elsewhere)


def fingerprint_of(folder: Path, shards: Sequence[ShardRecord]) -> str:
    """SHA-256 over all that decides what a run sees; the folder of the shards does not.

    Args:
        folder: of the tables.
        shards: those that `samples.shard` counts.
    """
    samples = map_batch(folder / layout.SAMPLES_FILE)
    captions = map_batch(folder / CAPTIONS_FILE, CAPTION_SCHEMA)
    key_offsets, key_bytes = string_parts(samples.column("key"))
    token_offsets, token_ids = list_parts(captions.column("tokens"))
    numbers = (samples.column(name).to_numpy() for name in ("shard", "offset", "size"))
    owners = captions.column("sample").to_numpy()
    columns = [lengths(key_offsets), [key_bytes], *([each] for each in numbers)]
    columns += [lengths(token_offsets), [token_ids], [owners]]
    whole = hashlib.sha256(f"tessera index {layout.FORMAT_VERSION}\0{TOKENIZER_NAME}\0".encode())
    names = [PurePosixPath(record.location).name for record in shards]
    whole.update(json.dumps([names, samples.num_rows, captions.num_rows]).encode())
    for pieces in columns:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(np.ascontiguousarray(piece).data)
        whole.update(digest.digest())
    return whole.hexdigest()


def _append(
    writers: dict[str, TableWriter], table: pa.RecordBatch, shard: int, options: ScanOptions
) -> None:
    """Add the samples of a shard, their captions and their optional columns."""
    samples = writers[layout.SAMPLES_FILE]
    number = pa.array(np.full(table.num_rows, shard, np.int32))
    columns = [number if n == "shard" else table.column(n) for n in samples.schema.names]
    first = samples.num_rows
    captions = captions_of(table)
    owners = pa.array(captions.column("sample").to_numpy() + first)
    captions = captions.set_column(2, CAPTION_SCHEMA.field("sample"), owners)
    samples.append(pa.RecordBatch.from_arrays(columns, schema=samples.schema))
    writers[CAPTIONS_FILE].append(captions)
    for name in options.column_types:
        writer = writers[f"{layout.COLUMNS_DIR}/{name}.arrow"]
        values = table.column(f"column.{name}")
        writer.append(pa.RecordBatch.from_arrays([values], schema=writer.schema))


def _duplicates(
    table: pa.RecordBatch, again: dict[int, int], number: int, scans: Sequence[ShardScan]
) -> Iterator[Rejection]:
    """Rejections of the samples whose key came before."""
    keys = table.column("key").take(pa.array(list(again), pa.int64())).to_pylist()
    location = scans[number].record.location
    for key, first in zip(keys, again.values(), strict=True):
        where = "earlier in this shard" if first == number else f"in {scans[first].record.location}"
        detail = f"the key {key} is already used {where}"
        yield Rejection(key, location, "", Reason.DUPLICATE_KEY, detail)


def _rejected_batch(rejected: Sequence[Rejection], directory: Path) -> pa.RecordBatch:
    stored = [each._replace(shard=stored_location(each.shard, directory)) for each in rejected]
    columns = list(zip(*stored, strict=True)) or [()] * len(layout.REJECTED_SCHEMA)
    arrays = [pa.array(map(str, column), pa.large_string()) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=layout.REJECTED_SCHEMA)
