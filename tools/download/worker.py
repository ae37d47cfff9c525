"""What a worker process does with a shard: fetch its rows, store its pictures, write it whole.

A shard is three files, as img2dataset names and fills them: NNNNN.tar, a plain USTAR of KEY.jpg and
KEY.txt; NNNNN.parquet, what became of each row; NNNNN_stats.json, last. What cannot be written ends
the shard without the last one, so it does not count as done.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from queue import SimpleQueue
from typing import Any

import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq

from tessera.tools.download.causes import Cause, RefusedError, classify
from tessera.tools.download.fetch import Fetcher
from tessera.tools.download.job import FetchLimits, Job, PictureOptions
from tessera.tools.download.upright import UprightResizer

_SIZES = ("width", "height", "original_width", "original_height")
_COLUMNS = [(name, pa.string()) for name in ("key", "status", "error_message")]
_COLUMNS += [*((name, pa.int32()) for name in _SIZES), ("sha256", pa.string())]

counts: Any = None
"""Shared integers of this process: shard + 1, rows, pictures, rows by cause; None: not counted."""


@cache
def _fetcher_of_process(limits: FetchLimits) -> Fetcher:
    """The one fetcher of this process: its connections and resolver serve all shards."""
    return Fetcher(limits)


class ShardDownloader:
    """What a distributor calls with each shard: its number and the file of its rows."""

    def __init__(self, job: Job) -> None:
        self._job = job
        options = {each.name: getattr(job, each.name) for each in fields(PictureOptions)}
        self._resize = UprightResizer(**options)

    def __call__(self, shard: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """Download a shard; returns whether that went well, and the shard, for img2dataset."""
        return not self.attempt(shard), shard

    def attempt(self, shard: tuple[int, str]) -> str:
        """Download a shard; returns why that failed, or nothing."""
        try:
            self._download(*shard)
        except Exception as error:
            traceback.print_exc()
            return f"shard {shard[0]}: {error!r}"
        return ""

    def _download(self, shard: int, source: str) -> None:
        began = time.time()
        files, place = fsspec.core.url_to_fs(source)
        table = pa.ipc.open_file(pa.BufferReader(files.cat_file(place))).read_all()
        if counts is not None:
            counts[:] = [shard + 1, *[0] * (len(counts) - 1)]
        name = f"{fsspec.core.url_to_fs(self._job.shards)[1]}/{shard:05d}"
        done = []
        with (
            files.open(f"{name}.tar", "wb") as file,
            tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for row, content in self._fetched(table.to_pylist()):
                done.append(self._store(row, content, tar))
        schema = pa.schema([*table.schema, *_COLUMNS])
        with files.open(f"{name}.parquet", "wb") as file:
            pq.write_table(pa.Table.from_pylist(done, schema), file)
        statuses = Counter(row["status"] for row in done)
        stats = {
            "count": len(done),
            "successes": statuses["success"],
            "failed_to_download": statuses["failed_to_download"],
            "failed_to_resize": statuses["failed_to_resize"],
            "duration": time.time() - began,
            "start_time": began,
            "end_time": time.time(),
            "status_dict": Counter(row["error_message"] or "success" for row in done),
        }
        files.pipe_file(f"{name}_stats.json", json.dumps(stats, indent=4).encode())
        files.rm(place)

    def _fetched(
        self, rows: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], bytes | Exception]]:
        """Rows with what came of their URLs, as that comes."""
        answers: SimpleQueue[tuple[int, bytes | Exception]] = SimpleQueue()
        fetcher, most = _fetcher_of_process(self._job), 2 * self._job.threads
        begun = 0
        for ended in range(len(rows)):
            while begun < min(len(rows), ended + most):
                url = rows[begun]["url"] or ""
                fetcher.start(url, lambda answer, place=begun: answers.put((place, answer)))
                begun += 1
            place, answer = answers.get()
            yield rows[place], answer

    def _store(
        self, row: dict[str, Any], content: bytes | Exception, tar: tarfile.TarFile
    ) -> dict[str, Any]:
        """Put a picture and its caption into the tar; returns the row with what became of it."""
        key, caption = key_of_row(row["row_id"]), (row["caption"] or "").encode()
        jpeg, sizes, digest, status = None, [None] * 4, None, "failed_to_download"
        if isinstance(content, bytes):
            jpeg, *sizes, message = self._resize(io.BytesIO(content))
            status = "failed_to_resize"
        elif isinstance(content, RefusedError):
            message = str(content)
        else:
            print(f"row {row['row_id']}: {content!r}", file=sys.stderr)
            message = f"{Cause.UNKNOWN}: {type(content).__name__} while fetching"
        if jpeg is not None and isinstance(content, bytes):
            status, digest = "success", hashlib.sha256(content).hexdigest()
            for suffix, data in (("jpg", jpeg), ("txt", caption)):
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        if counts is not None:
            cause = classify(status, message)
            counts[1] += 1
            counts[2 if cause is None else 3 + list(Cause).index(cause)] += 1
        outcome = {"key": key, "status": status, "error_message": message, "sha256": digest}
        return row | outcome | dict(zip(_SIZES, sizes, strict=True))


def key_of_row(row_id: int) -> str:
    """The key of a sample: the place of its row in the source table, in nine digits or more."""
    return f"{row_id:09d}"
