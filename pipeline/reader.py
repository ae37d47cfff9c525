"""Reads image bytes out of shards by (shard, offset, size), without walking any tar."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from pipeline.index import Index
from pipeline.shard_cache import CacheConfig, ShardCache
from pipeline.storage import is_remote, read_range

_MAX_OPEN = 256
_REMOTE = -1
"""Stands where a local shard has its file descriptor."""


class ShardReader:
    """Positioned reads from many threads; at most 256 shards are open at a time."""

    def __init__(self, index: Index, num_threads: int, cache: CacheConfig | None = None) -> None:
        """Prepare to read; no file is opened yet.

        Args:
            index: where the samples lie.
            num_threads: reads in flight.
            cache: where remote shards are kept whole; None, or one without a folder, reads of a
                remote shard only the bytes that are wanted.
        """
        self._index = index
        self._cache = ShardCache(cache, index.shards) if cache and cache.folder else None
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read")
        self._files: dict[int, int] = {}
        self._lock = Lock()
        self._closing = Event()

    def read(self, sample_ids: NDArray[np.int64]) -> list[bytes | OSError]:
        """Read the image bytes of some samples.

        Args:
            sample_ids: [B] rows of the index, any order.

        Returns:
            For each sample its bytes, or the error that kept them from being read.
        """
        disk_order = np.lexsort((self._index.offset[sample_ids], self._index.shard[sample_ids]))
        shards = self._open(np.unique(self._index.shard[sample_ids]))
        results: list[bytes | OSError] = [b""] * len(sample_ids)

        def read_run(places: NDArray[np.int64]) -> None:
            for place in places.tolist():
                results[place] = self._read_one(int(sample_ids[place]), shards)

        # One run of neighbours for each thread: a task for each sample costs more than its read.
        runs = np.array_split(disk_order, self._num_threads)
        for _ in self._pool.map(read_run, runs):
            pass
        return results

    def expect(self, shards: Sequence[int]) -> None:
        """Have remote shards fetched that will be read soon, the most urgent first.

        Raises:
            ValueError: the cache has no room for them.
        """
        remote = [n for n in shards if is_remote(self._index.shards[n].location)]
        if self._cache is not None and remote:
            self._cache.expect(remote)

    def give_up(self) -> None:
        """Have reads of remote shards fail rather than wait and try again; `close` follows."""
        self._closing.set()
        if self._cache is not None:
            self._cache.give_up()

    def close(self) -> None:
        """End the threads and close the shards."""
        self.give_up()
        if self._cache is not None:
            self._cache.close()
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def _read_one(self, sample_id: int, shards: dict[int, int | OSError]) -> bytes | OSError:
        if self._closing.is_set():
            return OSError("the loader is closing")
        file = shards[int(self._index.shard[sample_id])]
        if isinstance(file, OSError):
            return file
        size = int(self._index.size[sample_id])
        offset = int(self._index.offset[sample_id])
        try:
            if file == _REMOTE:
                location = self._index.shards[int(self._index.shard[sample_id])].location
                data = read_range(location, offset, size, self._closing)
            else:
                data = os.pread(file, size, offset)
        except OSError as error:
            return error
        if len(data) < size:
            return OSError(f"the shard ends early: got {len(data)} of {size} bytes")
        return data

    def _local_path(self, shard: int) -> str | Path:
        location = self._index.shards[shard].location
        if is_remote(location) and self._cache is not None:
            return self._cache.path(shard)
        return location

    def _open(self, shards: Sequence[int] | NDArray[np.int32]) -> dict[int, int | OSError]:
        """File descriptors of the shards of one batch, opening and closing as needed."""
        opened: dict[int, int | OSError] = {}
        with self._lock:
            for shard in map(int, shards):
                if shard in self._files:
                    self._files[shard] = opened[shard] = self._files.pop(shard)
                    continue
                location = self._index.shards[shard].location
                if is_remote(location) and self._cache is None:
                    opened[shard] = _REMOTE
                    continue
                try:
                    file = os.open(self._local_path(shard), os.O_RDONLY)
                except OSError as error:
                    opened[shard] = error
                    continue
                self._files[shard] = opened[shard] = file
            # The oldest go first; those of this batch are the newest.
            while len(self._files) > max(_MAX_OPEN, len(opened)):
                os.close(self._files.pop(next(iter(self._files))))
        return opened
