"""What a data set looks like: sizes, lengths and repetitions, counted as its index is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.arrow_file import column_view, list_parts
from tessera.pipeline.index.captions import MAX_TOKENS
from tessera.pipeline.index.options import DHASH, SHA256
from tessera.pipeline.index.spool import fixed_width_values

_NUM_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts between edges; what lies outside is counted in the first or last bin."""

    edges: NDArray[np.float64]
    """[K+1] ascending."""
    counts: NDArray[np.int64]
    """[K]."""

    def add(self, values: NDArray[Any]) -> None:
        """Count values."""
        inside = np.clip(values, self.edges[0], np.nextafter(self.edges[-1], 0))
        self.counts[:] += np.histogram(inside, self.edges)[0]

    def to_json(self) -> dict[str, list[float]]:
        """Edges and counts."""
        return {"edges": np.round(self.edges, 4).tolist(), "counts": self.counts.tolist()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """How often the values of one kind repeat."""

    num_values: int
    """Values looked at."""
    num_distinct: int
    """Different ones among them."""
    most_frequent: list[tuple[str, int]]
    """The most frequent repeated values and how often they occur, the most frequent first."""


def _log_edges(low: float, high: float, per_octave: int) -> NDArray[np.float64]:
    count = round(np.log2(high / low) * per_octave)
    return low * 2.0 ** (np.arange(count + 1) / per_octave)


def _histogram(edges: NDArray[np.float64]) -> Histogram:
    return Histogram(edges=edges, counts=np.zeros(len(edges) - 1, np.int64))


@dataclass(kw_only=True, slots=True)
class Survey:
    """Filled shard by shard."""

    width_range: tuple[int, int] = (2**31 - 1, 0)
    """Smallest and largest width in pixels."""
    height_range: tuple[int, int] = (2**31 - 1, 0)
    """Smallest and largest height in pixels."""
    shorter_side: Histogram = field(default_factory=lambda: _histogram(_log_edges(16, 8192, 4)))
    """Of the pictures, in pixels."""
    aspect_ratio: Histogram = field(default_factory=lambda: _histogram(_log_edges(1, 8, 8)))
    """Longer over shorter side."""
    file_kib: Histogram = field(default_factory=lambda: _histogram(_log_edges(1, 4096, 4)))
    """Size of the image files in KiB."""
    num_tokens: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(MAX_TOKENS + 1, np.int64)
    )
    """[254] how many texts have so many ids, without SOT and EOT."""
    image_bytes: int = 0
    """Size of all image files."""
    _text_hashes: list[NDArray[np.int64]] = field(default_factory=list)
    _values: dict[str, list[NDArray[np.uint64]]] = field(default_factory=dict)

    def add(self, samples: pa.RecordBatch, captions: pa.RecordBatch, columns: Any) -> None:
        """Count the usable samples of a shard."""
        if not samples.num_rows:
            return
        width, height, size = (column_view(samples, name) for name in ("width", "height", "size"))
        self.width_range = _wider(self.width_range, width)
        self.height_range = _wider(self.height_range, height)
        shorter = np.minimum(width, height)
        self.shorter_side.add(shorter)
        self.aspect_ratio.add(np.maximum(width, height) / shorter)
        self.file_kib.add(size / 1024)
        self.image_bytes += int(size.sum(dtype=np.int64))
        lengths = np.diff(list_parts(captions.column("tokens"))[0])
        self.num_tokens += np.bincount(lengths, minlength=len(self.num_tokens))
        texts = captions.column("text").to_pylist()
        self._text_hashes.append(np.fromiter(map(hash, texts), np.int64, len(texts)))
        for name in (SHA256, DHASH):
            if name in columns.schema.names:
                self._values.setdefault(name, []).append(_eight_bytes(columns.column(name)))

    def repetitions(self, captions: pa.RecordBatch, keys: pa.Array) -> dict[str, Repetition]:
        """Repeated texts and, where they were asked for, repeated files and pictures.

        Args:
            captions: all texts, in the order in which they were added.
            keys: of all samples, in the order in which they were added.
        """
        found = {"text": _repetition(self._text_hashes, captions.column("text"))}
        for name, values in self._values.items():
            found[name] = _repetition(values, keys)
        return found

    def token_statistics(self) -> tuple[float, int, int]:
        """Mean, 99th percentile and largest number of ids of a text."""
        total = int(self.num_tokens.sum())
        if not total:
            return 0.0, 0, 0
        mean = float(self.num_tokens @ np.arange(len(self.num_tokens))) / total
        at = int(np.searchsorted(np.cumsum(self.num_tokens), 0.99 * total))
        return mean, at, int(np.flatnonzero(self.num_tokens)[-1])


def _eight_bytes(column: pa.Array) -> NDArray[np.uint64]:
    """[M] a number for each value; the start of a SHA-256 tells files apart well enough."""
    values = fixed_width_values(column)
    if values.ndim == 1:
        return values.astype(np.uint64)
    return np.ascontiguousarray(values[:, :8]).view(np.uint64).ravel()


def _wider(before: tuple[int, int], values: NDArray[np.int32]) -> tuple[int, int]:
    return min(before[0], int(values.min())), max(before[1], int(values.max()))


def _repetition(parts: Iterable[NDArray[Any]], named_by: pa.Array) -> Repetition:
    """Count equal values; the frequent ones are shown by the row where they first occur."""
    values = np.concatenate(list(parts)) if parts else np.empty(0, np.int64)
    ordered = np.sort(values)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    counts = np.diff(np.append(starts, len(ordered)))
    frequent = np.argsort(-counts, kind="stable")[:_NUM_EXAMPLES]
    frequent = frequent[counts[frequent] > 1]
    shown: list[tuple[str, int]] = []
    for start, count in zip(ordered[starts[frequent]], counts[frequent].tolist(), strict=True):
        row = int(np.flatnonzero(values == start)[0])
        shown.append((named_by[row].as_py(), count))
    return Repetition(num_values=len(values), num_distinct=len(starts), most_frequent=shown)
