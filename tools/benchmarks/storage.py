"""How fast the shards come off the storage, with the page cache cold and warm.

Cold means that the kernel was asked to drop its copies (posix_fadvise), which needs no rights
beyond reading the files. It may decline; how much it dropped is looked up and reported.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline import LoaderConfig
from tessera.pipeline.index.dataset import Dataset
from tessera.pipeline.order import SampleOrder
from tessera.pipeline.reader import ShardReader
from tessera.pipeline.storage import is_remote

_PIECE_BYTES = 4 * 1024**2
_MOST_BYTES = 1024**3
_NUM_PROBES = 64


def measure_storage(dataset: Dataset, config: LoaderConfig, num_images: int) -> dict[str, object]:
    """Rates of reading whole shards and of reading samples in training order, cold and warm.

    Args:
        dataset: what is read.
        config: its batch size, seed and threads are used.
        num_images: samples to read, at most one pass.

    Returns:
        MB/s and images/s; a reason instead where the shards are not local files.
    """
    shards = [record.location for record in dataset.index.shards]
    if any(map(is_remote, shards)):
        return {"left_out": "the shards are remote"}
    order = SampleOrder(dataset.index.num_samples, config.seed, dataset.rows)
    steps = max(1, min(num_images, dataset.num_samples) // config.batch_size)
    batches = [order.ids(step, config.batch_size) for step in range(steps)]
    found: dict[str, object] = {"dropped_share": drop_page_cache(shards)}
    whole = {state: _whole_shards(shards) for state in ("cold", "warm")}
    found |= {f"whole_shards_{state}_mb_per_s": rate for state, rate in whole.items()}
    drop_page_cache(shards)
    for state in ("cold", "warm"):
        with _reading(dataset, config) as reader:
            rates = _samples(reader, batches)
        found[f"samples_{state}_mb_per_s"], found[f"samples_{state}_images_per_s"] = rates
        found[f"samples_{state}_share_of_whole_shards"] = rates[0] / whole[state]
    return found


def drop_page_cache(paths: Sequence[str]) -> float | None:
    """Ask the kernel to drop its copies of some files.

    Returns:
        Share of probed places that are not in memory any more; None where the file system does not
        tell.
    """
    missing: list[float | None] = []
    for path in paths:
        with _opened(path) as file:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            missing.append(_missing_share(file))
    known = [share for share in missing if share is not None]
    return sum(known) / len(known) if known else None


def _missing_share(file: int) -> float | None:
    size = os.fstat(file).st_size
    places = np.linspace(0, max(size - 1, 0), _NUM_PROBES).astype(int).tolist()
    absent = 0
    for place in places:
        try:
            os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
        except BlockingIOError:
            absent += 1
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return None
            raise
    return absent / len(places)


def _whole_shards(paths: Sequence[str]) -> float:
    num_bytes, start = 0, time.perf_counter()
    buffer = bytearray(_PIECE_BYTES)
    for path in paths:
        with _opened(path) as file:
            while (piece := os.readv(file, [buffer])) and num_bytes < _MOST_BYTES:
                num_bytes += piece
        if num_bytes >= _MOST_BYTES:
            break
    return num_bytes / 1e6 / (time.perf_counter() - start)


def _samples(reader: ShardReader, batches: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
    """MB/s and images/s of our reader."""
    num_bytes = num_images = 0
    start = time.perf_counter()
    for ids in batches:
        read = [data for data in reader.read(ids) if isinstance(data, bytes)]
        num_bytes += sum(map(len, read))
        num_images += len(read)
    seconds = time.perf_counter() - start
    return num_bytes / 1e6 / seconds, num_images / seconds


@contextmanager
def _opened(path: str) -> Iterator[int]:
    file = os.open(Path(path), os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _reading(dataset: Dataset, config: LoaderConfig) -> Iterator[ShardReader]:
    reader = ShardReader(dataset.index, config.num_threads)
    try:
        yield reader
    finally:
        reader.close()
