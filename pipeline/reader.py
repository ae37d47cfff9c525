"""Reads image bytes out of shards by (shard, offset, size), without walking any tar."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index import Index
from tessera.pipeline.index.chained_index import ChainedIndex
from tessera.pipeline.shard_cache import CacheConfig, ShardCache
from tessera.pipeline.storage import is_remote, read_range

_MAX_OPEN = 4096
_REMOTE = -1
"""Stands where a local shard has its file descriptor."""


class ShardReader:
    """Positioned reads from many threads.

    Shards stay open for the next batch, at most 4,096 and at most half of the files that the
    process may open. One that a thread reads is never closed under it, whatever others ask for.
    """

    def __init__(
        self, index: Index | ChainedIndex, num_threads: int, cache: CacheConfig | None = None
    ) -> None:
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
        self._readers: Counter[int] = Counter()
        self._max_open = _most_open()
        self._lock = Lock()
        self._closing = Event()

    def read(self, sample_ids: NDArray[np.int64]) -> list[bytes | OSError]:
        """Read the image bytes of some samples.

        Args:
            sample_ids: [B] rows of the index, any order.

        Returns:
            For each sample its bytes, or the error that kept them from being read.
        """
        shard_of = self._index.shard[sample_ids]
        disk_order = np.lexsort((self._index.offset[sample_ids], shard_of))
        # Two threads may read at once, the one ahead and the one that replaces bad samples.
        group = max(1, self._max_open // 2)
        first_places = np.flatnonzero(np.diff(shard_of[disk_order], prepend=-1))
        results: list[bytes | OSError] = [b""] * len(sample_ids)
        for some in np.split(disk_order, first_places[group::group]):
            self._read_group(sample_ids, some, results)
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

    def _read_group(
        self,
        sample_ids: NDArray[np.int64],
        disk_order: NDArray[np.int64],
        results: list[bytes | OSError],
    ) -> None:
        """Fill in the results at some places, whose shards may all be open together."""

        def read_run(places: NDArray[np.int64]) -> None:
            for place in places.tolist():
                results[place] = self._read_one(int(sample_ids[place]), shards)

        with self._opened(np.unique(self._index.shard[sample_ids[disk_order]])) as shards:
            # One run of neighbours for each thread: a task for each sample would cost more.
            for _ in self._pool.map(read_run, np.array_split(disk_order, self._num_threads)):
                pass

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

    @contextmanager
    def _opened(self, shards: NDArray[np.int32]) -> Iterator[dict[int, int | OSError]]:
        """File descriptors of some shards, which stay open inside the block at least."""
        opened: dict[int, int | OSError] = {}
        held: list[int] = []
        try:
            for shard in map(int, shards):
                if is_remote(self._index.shards[shard].location) and self._cache is None:
                    opened[shard] = _REMOTE
                    continue
                try:
                    opened[shard] = self._hold(shard)
                    held.append(shard)
                except OSError as error:
                    opened[shard] = error
            yield opened
        finally:
            with self._lock:
                self._readers.subtract(held)

    def _hold(self, shard: int) -> int:
        """The file descriptor of a shard, with one more reader."""
        with self._lock:
            known = shard in self._files
        # Without the lock: a shard that has to be fetched first may take minutes.
        path = "" if known else self._local_path(shard)
        with self._lock:
            if shard not in self._files:
                self._close_oldest(self._max_open - 1)
                self._files[shard] = self._open(shard, path or self._local_path(shard))
            self._files[shard] = file = self._files.pop(shard)
            self._readers[shard] += 1
        return file

    def _open(self, shard: int, path: str | Path) -> int:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            if self._cache is None:
                raise
            # Another process needed the room just now; it is fetched again.
            return os.open(self._local_path(shard), os.O_RDONLY)

    def _close_oldest(self, num_left: int) -> None:
        """Close shards that nobody reads, those first that were asked for longest ago."""
        idle = [shard for shard in self._files if not self._readers[shard]]
        for shard in idle[: max(0, len(self._files) - num_left)]:
            os.close(self._files.pop(shard))
            del self._readers[shard]


def _most_open() -> int:
    """Shards that may be open at a time."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_OPEN if limit == resource.RLIM_INFINITY else max(2, min(_MAX_OPEN, limit // 2))
