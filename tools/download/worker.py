"""img2dataset's Downloader with its thread pool, resizer, keys and writer replaced.

Only this class is handed to img2dataset. A worker process, spawned or on another machine, gets it
by unpickling, which imports this module there; nothing of img2dataset is copied or changed on disk.
"""

from __future__ import annotations

import importlib
import io
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from queue import SimpleQueue
from typing import Any

import fsspec
import pyarrow as pa

from tessera.tools.download.causes import Cause, RefusedError, classify
from tessera.tools.download.fetch import Fetcher, FetchLimits
from tessera.tools.download.processes import without_unused_imports
from tessera.tools.download.upright import UprightResizer

# `import img2dataset.downloader as x` would do, but `img2dataset.main` is a function under that
# name, so all of them are asked for in the same way.
with without_unused_imports():
    img2dataset_main: Any = importlib.import_module("img2dataset.main")
    _downloader: Any = importlib.import_module("img2dataset.downloader")
    _writer: Any = importlib.import_module("img2dataset.writer")

Answer = tuple[Any, io.BytesIO | None, str | None]

counts: Any = None
"""Shared integers of this process: shard + 1, rows, pictures, rows by cause; None: not counted."""


@cache
def fetcher_of_process(limits: FetchLimits) -> Fetcher:
    """The one fetcher of this process: its connections and resolver serve all shards."""
    return Fetcher(limits)


class StrictWriter:
    """Writes a shard whole or fails: plain USTAR of pictures and captions, and a parquet of rows.

    img2dataset prints what goes wrong while a sample is written, a full disk for example, and then
    finishes the shard without it. Its tars have a PAX header and a json for each sample, about
    4 KB that the parquet holds as well.
    """

    def __init__(
        self, shard: int, folder: str, _caption: bool, digits: int, schema: pa.Schema, _format: str
    ) -> None:
        files, root = fsspec.core.url_to_fs(folder)
        name = f"{shard:0{digits}d}"
        self.failure: Exception | None = None  # What went wrong first
        self._file = files.open(f"{root}/{name}.tar", "wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._rows = _writer.BufferedParquetWriter(f"{folder}/{name}.parquet", schema, 100)

    def write(self, jpeg: bytes | None, key: str, caption: str | None, meta: dict) -> None:
        """Write one sample, or one row without a sample."""
        if self.failure is not None:
            return
        try:
            if jpeg is not None:
                for suffix, data in (("jpg", jpeg), ("txt", (caption or "").encode())):
                    entry = tarfile.TarInfo(f"{key}.{suffix}")
                    entry.size = len(data)
                    self._tar.addfile(entry, io.BytesIO(data))
            self._rows.write(meta)
        except Exception as error:
            self.failure = error
            raise
        if counts is not None:
            cause = classify(meta["status"], meta["error_message"])
            counts[1] += 1
            counts[2 if cause is None else 3 + list(Cause).index(cause)] += 1

    def close(self) -> None:
        """Finish the shard.

        Raises:
            Exception: a sample was not written, so this shard must not count as finished.
        """
        if self.failure is not None:
            raise self.failure
        self._rows.close()
        self._tar.close()
        self._file.close()


class FetchPool:
    """Stands in for the ThreadPool of img2dataset's loop: the fetches share one event loop."""

    def __init__(self, fetcher: Fetcher, size: int, is_over: Callable[[], bool]) -> None:
        self._fetcher = fetcher
        self._most = 2 * size  # img2dataset's own bound of rows begun and not yet written
        self._is_over = is_over

    def __enter__(self) -> FetchPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def terminate(self) -> None:
        """Nothing of it is running when img2dataset asks."""

    join = terminate

    def imap_unordered(
        self, _fetch: object, rows: Iterable[tuple[int, str | None]]
    ) -> Iterator[Answer]:
        """Fetch the URL of each row; yields (row, content or None, message or None)."""
        answers: SimpleQueue[tuple[int, bytes | Exception]] = SimpleQueue()
        waiting, left = 0, iter(rows)
        while True:
            while waiting < self._most and (row := next(left, None)) is not None:
                key, url = row
                waiting += 1
                if self._is_over():
                    answers.put((key, RefusedError(Cause.UNKNOWN, "the shard cannot be written")))
                else:
                    self._fetcher.start(url or "", lambda answer, k=key: answers.put((k, answer)))
            if not waiting:
                return
            key, answer = answers.get()
            waiting -= 1
            if isinstance(answer, bytes):
                yield key, io.BytesIO(answer), None
            elif isinstance(answer, RefusedError):
                yield key, None, str(answer)
            else:
                print(f"row {key} of the shard: {answer!r}", file=sys.stderr)
                yield key, None, f"{Cause.UNKNOWN}: {type(answer).__name__} while fetching"


class TesseraDownloader(_downloader.Downloader):
    """Downloads one shard at a time in a worker process."""

    def __init__(self, *, limits: FetchLimits, resizer: UprightResizer, **options: Any) -> None:
        super().__init__(resizer=resizer, **options)
        self.limits = limits  # What one fetch may take
        self._shard_writer: StrictWriter | None = None

    def download_shard(self, row: tuple[int, str]) -> None:
        """Download the rows of one shard and write them."""
        files, path = fsspec.core.url_to_fs(row[1])
        with files.open(path, "rb") as file:
            row_ids = pa.ipc.open_file(file).read_all()["row_id"].to_pylist()
        if counts is not None:
            counts[:] = [row[0] + 1, *[0] * (len(counts) - 1)]
        # All are looked up in img2dataset's module at each call, so replacing them there works;
        # a process does one shard at a time.
        self.sample_writer_class = self._open_writer
        _downloader.compute_key = lambda key, *_: key_of_row(row_ids[key])
        _downloader.ThreadPool = self._open_pool
        super().download_shard(row)

    def attempt(self, row: tuple[int, str]) -> str:
        """Download a shard; returns why that failed, or nothing."""
        try:
            self.download_shard(row)
        except Exception as error:
            traceback.print_exc()
            return f"shard {row[0]}: {error!r}"
        return ""

    def _open_writer(self, *args: Any) -> StrictWriter:
        self._shard_writer = StrictWriter(*args)
        return self._shard_writer

    def _open_pool(self, size: int) -> FetchPool:
        writer = self._shard_writer
        return FetchPool(
            fetcher_of_process(self.limits),
            size,
            lambda: writer is not None and writer.failure is not None,
        )


def key_of_row(row_id: int) -> str:
    """The key of a sample: the place of its row in the source table, in nine digits or more."""
    return f"{row_id:09d}"
