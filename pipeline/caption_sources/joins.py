"""Which samples of an index the rows of a file belong to.

Legend: M samples of the index, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tessera.pipeline.caption_sources.alignment import AlignmentCheck
from tessera.pipeline.caption_sources.rows import RowBatch
from tessera.pipeline.index import DEFAULT_SOURCE, SOURCE_SEPARATOR, Index
from tessera.pipeline.selection.split import hash_values

_CHUNK_ROWS = 1 << 16
Match = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of a batch and the samples they belong to. A row without a sample is in neither; one that
several samples share is there once for each."""


class Join(Protocol):
    """Finds the samples of rows."""

    def match(self, batch: RowBatch) -> Match:
        """The samples of a batch; batches come in their order."""
        ...

    def finish(self) -> float | None:
        """Judge the whole; returns the word overlap where it is proven worst, if it was measured.

        Raises:
            ValueError: the rows are not proven to belong to their samples.
        """
        ...


class ValueJoin:
    """Rows are matched by a value that the index has of every sample: its key or its URL.

    Holds 16 bytes a sample, whatever the size of the files: 64-bit hashes are searched, and what
    they find is compared letter by letter.
    """

    def __init__(self, values: pa.Array, what: str) -> None:
        """Hash the values.

        Args:
            values: [M] text of each sample; empty where it has none.
            what: `key` or `url`, for messages.
        """
        self._values = values
        self._what = what
        hashes = np.concatenate([np.empty(0, np.uint64), *map(_hashes, _chunks(values))])
        there = np.flatnonzero(pc.call_function("binary_length", [values]).to_numpy() > 0)
        self._ids = there[np.argsort(hashes[there], kind="stable")]
        self._hashes = hashes[self._ids]
        self._example = ""
        self._num_matched = 0

    def match(self, batch: RowBatch) -> Match:
        """See `Join`."""
        keys = pa.array(batch.keys, pa.large_string())
        wanted = _hashes(keys)
        first = np.searchsorted(self._hashes, wanted, side="left")
        count = np.searchsorted(self._hashes, wanted, side="right") - first
        rows = np.repeat(np.arange(len(keys)), count)
        ends = np.cumsum(count)
        ids = self._ids[np.arange(len(rows)) + np.repeat(first - ends + count, count)]
        same = pc.call_function(
            "equal", [self._values.take(pa.array(ids)), keys.take(pa.array(rows))]
        ).to_numpy(zero_copy_only=False)
        self._num_matched += int(same.sum())
        self._example = self._example or next(iter(batch.keys), "")
        return rows[same], ids[same]

    def finish(self) -> None:
        """See `Join`.

        Raises:
            ValueError: no row has a value of the index.
        """
        if not self._num_matched:
            theirs = self._values[int(self._ids[0])].as_py() if len(self._ids) else ""
            raise ValueError(
                f"no {self._what} of the files is one of the index: theirs are like "
                f"{self._example!r}, the index has ones like {theirs!r}. Choose another "
                "--key-column, or --stem True for paths whose file name is the key"
            )


class KeyJoin(ValueJoin):
    """Rows are matched by key, or by `SOURCE:KEY` where the index has several sources."""

    def __init__(self, index: Index, source: str = "") -> None:
        """Hash the keys.

        Args:
            index: whose samples are found.
            source: the one that keys without a source are of; empty if that is to be seen from
                the key.

        Raises:
            ValueError: the index has no such source.
        """
        super().__init__(index.table.column("key"), "key")
        self._index = index
        self._names = index.source_names
        if source and source not in self._names:
            known = ", ".join(self._names)
            raise ValueError(f"the index has no source {source!r}; it has: {known}")
        self._usual = self._names.index(source) if source else -1

    def match(self, batch: RowBatch) -> Match:
        """See `Join`.

        Raises:
            ValueError: a key is of several sources, and nothing says which one is meant.
        """
        if len(self._names) < 2:
            return super().match(batch)
        parts = [key.partition(SOURCE_SEPARATOR) for key in batch.keys]
        numbers = [
            self._names.index(source) if separator and source in self._names else -1
            for source, separator, _ in parts
        ]
        pairs = zip(parts, numbers, batch.keys, strict=True)
        keys = [part[2] if number >= 0 else key for part, number, key in pairs]
        wanted = np.array([self._usual if n < 0 else n for n in numbers], np.int64)
        rows, ids = super().match(replace(batch, keys=keys))
        fits = (wanted[rows] < 0) | (wanted[rows] == self._index.sources_of(ids))
        rows, ids = rows[fits], ids[fits]
        repeated = np.flatnonzero(rows[1:] == rows[:-1])
        if len(repeated):
            row = int(rows[repeated[0]])
            both = " and ".join(self._index.keys(ids[rows == row]))
            raise ValueError(
                f"{batch.place_of(row)}: the key {keys[row]!r} is that of {both}: write keys so, "
                "or name the source that all are of with --source"
            )
        return rows, ids


class RowJoin:
    """Row k belongs to sample k, proven by their numbers and by the words they share."""

    def __init__(self, index: Index) -> None:
        """Start with the first row.

        Args:
            index: its first texts are what rows are compared with.
        """
        self._originals = index.captions(DEFAULT_SOURCE)
        self._num_samples = index.num_samples
        self._num_rows = 0
        self._checks: list[AlignmentCheck] = []

    def match(self, batch: RowBatch) -> Match:
        """See `Join`.

        Raises:
            ValueError: rows share too few words with their samples.
        """
        rows = np.arange(len(batch.texts))
        ids = rows + self._num_rows
        self._num_rows += len(rows)
        if self._num_rows <= self._num_samples:
            self._compare(batch, ids)
        known = ids < self._num_samples
        return rows[known], ids[known]

    def finish(self) -> float | None:
        """See `Join`.

        Raises:
            ValueError: the numbers differ, or a block of rows shares too few words with its
                samples.
        """
        if self._num_rows != self._num_samples:
            raise ValueError(
                f"the files have {self._num_rows:,} rows, the index {self._num_samples:,} samples: "
                "they cannot be joined by their order. Join by key or by URL; an index has no "
                "samples whose image could not be downloaded or read"
            )
        return min((check.finish().aligned for check in self._checks), default=None)

    def _compare(self, batch: RowBatch, ids: NDArray[np.int64]) -> None:
        originals = self._originals.texts(self._originals.draw(ids, np.zeros(len(ids))))
        most = max(map(len, batch.texts), default=0)
        while len(self._checks) < most:
            what = f"text {len(self._checks) + 1} of the files"
            self._checks.append(AlignmentCheck(what, first_row=int(ids[0])))
        for number, check in enumerate(self._checks):
            check.add(
                originals, [each[number] if number < len(each) else "" for each in batch.texts]
            )


class SampleOrderJoin:
    """Rows that were read from the shards in the order of the index need no proof."""

    def match(self, batch: RowBatch) -> Match:
        """See `Join`."""
        rows = np.arange(len(batch.texts))
        return rows, rows + batch.first_row

    def finish(self) -> None:
        """See `Join`."""


def _hashes(values: pa.Array) -> NDArray[np.uint64]:
    return hash_values(values, "join")


def _chunks(values: pa.Array) -> Iterator[pa.Array]:
    return (values[start : start + _CHUNK_ROWS] for start in range(0, len(values), _CHUNK_ROWS))
