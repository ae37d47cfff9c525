"""Rows to parquet parts: duplicate URLs dropped, hosts spread, memory bounded.

Rows are spilled to buckets on disk by a seeded hash of their URL. Each bucket then fits in memory
and holds all rows of its URLs, so duplicates are found exactly. Within a bucket the rows of each
host are shuffled and placed at equal distances, from a random start; buckets are written one after
the other. So a host with a share p of the table has about p of the rows of any stretch of it, and
as few neighbours of its own as that share allows. The order depends on the rows and the seed only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandas.util import hash_array

from pipeline.counter_random import mix
from tools.download.table.findings import Tally
from tools.download.table.rows import pc

_BUCKET_BYTES = 32 << 20
_MAX_BUCKETS = 512
_ROW_GROUP = 65_536
_TOP_HOSTS = 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
HOST = r"^(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """What was written."""

    num_rows: int
    """Rows in all parts."""
    part_rows: tuple[int, ...]
    """Rows of each part."""
    num_hosts: int
    """Distinct hosts."""
    top_hosts: tuple[tuple[str, int], ...]
    """The hosts with most rows, and how many."""


def num_buckets_for(num_bytes: int) -> int:
    """Buckets for so many bytes of rows; above 16 GB of rows buckets grow with the table."""
    return min(_MAX_BUCKETS, max(1, -(-num_bytes // _BUCKET_BYTES)))


def host_of(urls: pa.Array) -> pa.Array:
    """[N] the host of each URL in lower case; empty where it has none."""
    return pc.fill_null(pc.utf8_lower(pc.extract_regex(urls, HOST).field("host")), "")


def spread_rows(
    batches: Iterable[pa.RecordBatch],
    folder: Path,
    *,
    schema: pa.Schema,
    tally: Tally,
    num_buckets: int,
    seed: int,
    rows_per_part: int,
) -> Spread:
    """Write `part-NNNNN.parquet`, each with `rows_per_part` rows but the last.

    Args:
        batches: rows in the order of their ids, with the columns row_id, url, caption.
        folder: an empty folder; it also takes the buckets while this runs.
        schema: of the batches.
        tally: gets the duplicates: `duplicate_url` (same caption too) and
            `duplicate_url_other_caption`. The first row of a URL stays.
        num_buckets: see `num_buckets_for`.
        seed: of the order.
        rows_per_part: largest part.
    """
    buckets = _spill(batches, folder, schema, num_buckets, seed)
    parts = _PartWriter(folder, schema, rows_per_part)
    hosts: pa.Table | None = None
    for path in buckets:
        with pa.memory_map(str(path)) as file:
            rows = pa.ipc.open_stream(file).read_all().combine_chunks()
            rows = _first_of_url(rows, tally)
            names = host_of(_one(rows.column("url")))
            hosts = _count_hosts(hosts, names)
            parts.write(rows.take(_spread_order(rows, names, seed)))
            del rows
        path.unlink()
    parts.close()
    counted = hosts.sort_by([("count", "descending"), ("host", "ascending")]) if hosts else None
    top = counted.slice(0, _TOP_HOSTS).to_pylist() if counted else []
    return Spread(
        num_rows=sum(parts.rows),
        part_rows=tuple(parts.rows),
        num_hosts=len(counted) if counted else 0,
        top_hosts=tuple((item["host"], item["count"]) for item in top),
    )


def _spill(
    batches: Iterable[pa.RecordBatch],
    folder: Path,
    schema: pa.Schema,
    num_buckets: int,
    seed: int,
) -> list[Path]:
    paths = [folder / f"bucket-{number:03d}.arrow" for number in range(num_buckets)]
    writers = [pa.ipc.new_stream(str(path), schema) for path in paths]
    try:
        for batch in batches:
            if len(batch):
                _spill_batch(batch, writers, seed)
    finally:
        for writer in writers:
            writer.close()
    return paths


def _spill_batch(
    batch: pa.RecordBatch, writers: list[pa.ipc.RecordBatchStreamWriter], seed: int
) -> None:
    words = mix(_hashes(batch.column("url")) + _seed_word(seed))
    bucket = (words % np.uint64(len(writers))).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(len(writers) + 1))
    sorted_rows = batch.take(pa.array(order))
    for number, writer in enumerate(writers):
        if ends[number + 1] > ends[number]:
            writer.write_batch(sorted_rows.slice(ends[number], ends[number + 1] - ends[number]))


def _hashes(texts: pa.Array) -> NDArray[np.uint64]:
    """[N] a 64-bit hash of each string, the same in every process (SipHash)."""
    values = texts.to_numpy(zero_copy_only=False)
    words: Any = hash_array(values, categorize=False)  # pyright: ignore[reportCallIssue]
    return np.asarray(words, dtype=np.uint64)


def _seed_word(seed: int) -> NDArray[np.uint64]:
    return mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) * _GOLDEN + _GOLDEN)


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _first_of_url(rows: pa.Table, tally: Tally) -> pa.Table:
    """Rows without those whose URL came before."""
    urls = _one(rows.column("url")).dictionary_encode()
    codes = urls.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    largest_before = np.concatenate([[-1], np.maximum.accumulate(codes)[:-1]])[: len(codes)]
    firsts = np.flatnonzero(codes > largest_before)  # codes are numbered as they first appear
    if len(firsts) == len(codes):
        return rows
    again = np.setdiff1d(np.arange(len(codes)), firsts, assume_unique=True)
    captions = _one(rows.column("caption"))
    same = pc.equal(captions.take(pa.array(again)), captions.take(pa.array(firsts[codes[again]])))
    same_mask = same.to_numpy(zero_copy_only=False)
    row_ids = _one(rows.column("row_id")).to_numpy(zero_copy_only=False)[again]
    tally.note(tally.dropped, "duplicate_url", row_ids[same_mask])
    tally.note(tally.dropped, "duplicate_url_other_caption", row_ids[~same_mask])
    return rows.take(pa.array(firsts))


def _spread_order(rows: pa.Table, hosts: pa.Array, seed: int) -> pa.Array:
    """[N] places of the rows, each host's rows shuffled and at equal distances."""
    row_ids = _one(rows.column("row_id")).to_numpy(zero_copy_only=False).astype(np.uint64)
    if not len(row_ids):
        return pa.array([], pa.int64())
    names = hosts.dictionary_encode()
    codes = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    draws = mix(row_ids * _GOLDEN + _seed_word(seed))
    grouped = np.lexsort((draws, codes))
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=np.int64)
    rank[grouped] = np.arange(len(codes)) - starts[codes[grouped]]
    begin = mix(_hashes(names.dictionary) ^ _seed_word(seed)) / 2.0**64
    return pa.array(np.argsort((rank + begin[codes]) / counts[codes], kind="stable"))


def _count_hosts(known: pa.Table | None, names: pa.Array) -> pa.Table:
    counts = pc.value_counts(names)
    new = pa.table({"host": counts.field("values"), "count": counts.field("counts")})
    if known is None:
        return new
    summed = pa.concat_tables([known, new]).group_by("host").aggregate([("count", "sum")])
    return summed.rename_columns(["host", "count"]).select(["host", "count"])


class _PartWriter:
    """Cuts rows into parts of a fixed size."""

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_part: int) -> None:
        self.folder, self.schema, self.limit = folder, schema, rows_per_part
        self.rows: list[int] = []
        self.writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        while len(table):
            if self.writer is None or self.rows[-1] == self.limit:
                self._next()
            assert self.writer is not None
            head = table.slice(0, self.limit - self.rows[-1])
            self.writer.write_table(head, row_group_size=_ROW_GROUP)
            self.rows[-1] += len(head)
            table = table.slice(len(head))

    def _next(self) -> None:
        self.close()
        path = self.folder / f"part-{len(self.rows):05d}.parquet"
        self.writer = pq.ParquetWriter(path, self.schema, compression="zstd")
        self.rows.append(0)

    def close(self) -> None:
        """Finish the part, down to the disk."""
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        path = self.folder / f"part-{len(self.rows) - 1:05d}.parquet"
        with path.open("rb") as file:
            os.fsync(file.fileno())
