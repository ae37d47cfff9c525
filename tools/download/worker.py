"""img2dataset's Downloader with its fetcher, resizer, keys and writer replaced.

Only this class is handed to img2dataset. A worker process, spawned or on another machine, gets it
by unpickling, which imports this module there; nothing of img2dataset is copied or changed on disk.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from io import BytesIO
from typing import Any

import fsspec
import pyarrow as pa

from tools.download.addresses import FetchError
from tools.download.causes import Cause, message
from tools.download.fetch import Fetcher, FetchLimits
from tools.download.upright import UprightResizer

# `import img2dataset.downloader as x` would do, but `img2dataset.main` is a function under that
# name, so all of them are asked for in the same way.
_downloader: Any = importlib.import_module("img2dataset.downloader")
_writer: Any = importlib.import_module("img2dataset.writer")

Answer = tuple[Any, BytesIO | None, str | None]


@cache
def fetcher_of_process(limits: FetchLimits) -> Fetcher:
    """The one fetcher of this process: its resolver's answers serve all shards."""
    return Fetcher(limits)


class StrictWriter(_writer.WebDatasetSampleWriter):
    """Writes a shard whole or fails.

    img2dataset prints what goes wrong while a sample is written, a full disk for example, and then
    finishes the shard without it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failure: Exception | None = None
        """What went wrong first."""

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict) -> None:
        """Write one sample, or one row without a sample."""
        if self.failure is not None:
            return
        try:
            super().write(img_str, key, caption, meta)
        except Exception as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Finish the shard.

        Raises:
            RuntimeError: a sample was not written, so this shard must not count as finished.
        """
        if self.failure is not None:
            raise RuntimeError(f"a sample could not be written: {self.failure}")
        super().close()


class TesseraDownloader(_downloader.Downloader):
    """Downloads one shard at a time in a worker process."""

    def __init__(self, *, limits: FetchLimits, resizer: UprightResizer, **options: Any) -> None:
        super().__init__(resizer=resizer, **options)
        self.limits = limits
        """What one fetch may take."""
        self._shard_writer: StrictWriter | None = None

    def download_shard(self, row: tuple[int, str]) -> None:
        """Download the rows of one shard and write them.

        Args:
            row: number of the shard, and place of its Arrow file with the column row_id.
        """
        row_ids = _row_ids(row[1])

        def key_of(key: int, *_: object) -> str:
            return key_of_row(row_ids[key])

        # Both are looked up in img2dataset's module at each call, so replacing them there works;
        # a process does one shard at a time.
        self.sample_writer_class = self._open_writer
        _downloader.compute_key = key_of
        _downloader.download_image_with_retry = self._fetch
        super().download_shard(row)

    def _open_writer(self, *args: Any, **kwargs: Any) -> StrictWriter:
        self._shard_writer = StrictWriter(*args, **kwargs)
        return self._shard_writer

    def _fetch(self, row: tuple[int, str | None], **_: object) -> Answer:
        """Fetch one URL in a thread; an exception here would hang the shard for good."""
        key, url = row
        if self._shard_writer is not None and self._shard_writer.failure is not None:
            return key, None, message(Cause.UNKNOWN, "the shard cannot be written")
        try:
            return key, BytesIO(fetcher_of_process(self.limits).fetch(url or "")), None
        except FetchError as error:
            return key, None, message(error.cause, error.detail)
        except Exception as error:
            print(f"row {key} of the shard: {error!r}", file=sys.stderr)
            return key, None, message(Cause.UNKNOWN, f"{type(error).__name__} while fetching")


def key_of_row(row_id: int) -> str:
    """The key of a sample: the place of its row in the source table, in nine digits or more."""
    return f"{row_id:09d}"


def _row_ids(place: str) -> list[int]:
    system, path = fsspec.core.url_to_fs(place)
    with system.open(path, "rb") as file:
        return pa.ipc.open_file(file).read_all()["row_id"].to_pylist()
