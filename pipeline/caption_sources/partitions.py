"""Texts that come in any order, sorted by sample on disk.

Texts are dealt to files by ranges of samples, and each file is sorted when all are there, so that
memory holds one range at a time.

Legend: K texts of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_MAX_PARTS = 256
_LEAST_SAMPLES = 1 << 16
"""A smaller range is not worth a file of its own."""
_TEXTS_WAITING = 1 << 16
_SCHEMA = pa.schema([("sample", pa.int64()), ("row", pa.int64()), ("text", pa.large_string())])


class TextPartitions:
    """Files of texts, each for a range of samples."""

    def __init__(self, folder: Path, num_samples: int) -> None:
        """Start empty.

        Args:
            folder: where the files go.
            num_samples: of the index.
        """
        self._folder = folder
        self._size = max(_LEAST_SAMPLES, -(-num_samples // _MAX_PARTS))
        self._num_parts = max(1, -(-num_samples // self._size))
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self.num_texts = 0

    def add(
        self, samples: NDArray[np.int64], rows: NDArray[np.int64], texts: Sequence[str]
    ) -> None:
        """Add texts.

        Args:
            samples: [K] owners.
            rows: [K] rows of the input, over all files.
            texts: [K].
        """
        columns = [pa.array(samples), pa.array(rows), pa.array(texts, pa.large_string())]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        self._num_waiting += len(texts)
        self.num_texts += len(texts)
        if self._num_waiting >= _TEXTS_WAITING:
            self._deal()

    def sorted_parts(self) -> Iterator[pa.RecordBatch]:
        """All texts by sample, then by row, then as they came; each file is removed when read."""
        self._deal()
        for writer in self._writers.values():
            writer.close()
        for part in sorted(self._writers):
            path = self._path(part)
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all().combine_chunks()
                batch = table.to_batches()[0]
                order = np.lexsort((_numbers(batch, "row"), _numbers(batch, "sample")))
                yield batch.take(pa.array(order))
            path.unlink()

    def _path(self, part: int) -> Path:
        return self._folder / f"part_{part:03d}.arrows"

    def _deal(self) -> None:
        if not self._num_waiting:
            return
        table = pa.Table.from_batches(self._waiting, _SCHEMA).combine_chunks()
        self._waiting, self._num_waiting = [], 0
        batch = table.to_batches()[0]
        parts = _numbers(batch, "sample") // self._size
        order = np.argsort(parts, kind="stable")
        ends = np.searchsorted(parts[order], np.arange(self._num_parts + 1))
        for part in range(self._num_parts):
            mine = order[ends[part] : ends[part + 1]]
            if len(mine):
                self._writer(part).write_batch(batch.take(pa.array(mine)))

    def _writer(self, part: int) -> pa.ipc.RecordBatchStreamWriter:
        if part not in self._writers:
            self._writers[part] = pa.ipc.new_stream(str(self._path(part)), _SCHEMA)
        return self._writers[part]


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    return batch.column(name).to_numpy(zero_copy_only=True)
