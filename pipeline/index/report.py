"""What making an index found, for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.arrow_file import lengths, list_parts, map_batch
from tessera.pipeline.index.captions import CAPTION_SCHEMA, MAX_TOKENS
from tessera.pipeline.index.join import CAPTIONS_FILE
from tessera.pipeline.index.open import (
    COLUMN_FIELD,
    COLUMNS_DIR,
    REJECTED_FILE,
    REJECTED_SCHEMA,
    SAMPLE_SCHEMA,
    SAMPLES_FILE,
)
from tessera.pipeline.index.options import DHASH, SHA256
from tessera.pipeline.index.queries import Histogram, Queries, Repetition
from tessera.pipeline.index.rejection import Rejection
from tessera.pipeline.index.shard_record import ShardRecord, absolute_location

_NUM_EXAMPLES = 3
_HISTOGRAMS = {
    "shorter_side": ("least(width, height)", 16, 8192, 4),
    "aspect_ratio": ("greatest(width, height) / least(width, height)", 1, 8, 8),
    "file_kib": ("size / 1024", 1, 4096, 4),
}
"""Expression, first and last edge, bins an octave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """What was found while an index was made."""

    index_dir: Path
    """Where the index lies."""
    fingerprint: str
    """SHA-256 (hex) that names the data set."""
    num_shards: int
    """Shards given."""
    num_scanned_shards: int
    """Shards read now; the others were unchanged since an earlier run."""
    num_samples: int
    """Usable samples."""
    num_texts: int
    """Captions of these samples."""
    num_empty_texts: int
    """Empty captions left out of samples that have others."""
    rejections: dict[str, int]
    """Rejected samples by reason, most frequent first."""
    examples: dict[str, list[Rejection]]
    """The first few of each reason."""
    hints: tuple[str, ...]
    """What was seen that calls for another option or command, a line each."""
    source_sizes: dict[str, int]
    """Usable samples by source, in the order of their names."""
    shard_problems: dict[str, str]
    """Shards that could not be read, or not to their end, and why."""
    image_size_range: tuple[int, int, int, int]
    """Smallest and largest width, smallest and largest height, in pixels."""
    image_bytes: int
    """Size of all usable image files."""
    tokens_per_text: tuple[float, int, int]
    """Mean, 99th percentile and largest number of ids of a caption, without SOT and EOT."""
    num_tokens: tuple[int, ...]
    """[254] captions that have so many ids."""
    histograms: dict[str, Histogram]
    """`shorter_side` (pixels), `aspect_ratio` (longer over shorter side), `file_kib`."""
    repetitions: dict[str, Repetition]
    """Repeated `text`, and `sha256` or `dhash` where they were asked for."""
    seconds: float
    """Wall time."""
    num_scanned_samples: int
    """Samples looked at now, usable or not."""

    @property
    def num_rejected(self) -> int:
        """Samples that cannot be used."""
        return sum(self.rejections.values())

    @property
    def samples_per_s(self) -> float:
        """Samples looked at, usable or not, per second."""
        return self.num_scanned_samples / max(self.seconds, 1e-9)

    def summary(self) -> dict[str, Any]:
        """The figures that fit on a line, as plain JSON values."""
        return {
            "index_dir": str(self.index_dir),
            "fingerprint": self.fingerprint,
            "num_shards": self.num_shards,
            "num_scanned_shards": self.num_scanned_shards,
            "num_samples": self.num_samples,
            "num_texts": self.num_texts,
            "num_rejected": self.num_rejected,
            "num_empty_texts": self.num_empty_texts,
            "rejections": self.rejections,
            "sources": self.source_sizes,
            "hints": list(self.hints),
            "shard_problems": self.shard_problems,
            "seconds": round(self.seconds, 3),
            "samples_per_s": round(self.samples_per_s, 1),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            **self.summary(),
            "examples": {
                reason: [each._asdict() for each in found]
                for reason, found in self.examples.items()
            },
            "image_size_range": self.image_size_range,
            "image_bytes": self.image_bytes,
            "tokens_per_text": self.tokens_per_text,
            "num_tokens": self.num_tokens,
            "histograms": {name: each.to_json() for name, each in self.histograms.items()},
            "repetitions": {name: asdict(each) for name, each in self.repetitions.items()},
        }


def survey(folder: Path, directory: Path, queries: Queries) -> dict[str, Any]:
    """What the tables of an index tell of the data set: fields of `IndexReport`.

    Args:
        folder: of the tables.
        directory: where the index lies or will lie.
        queries: answer them.
    """
    samples = map_batch(folder / SAMPLES_FILE, SAMPLE_SCHEMA)
    captions = map_batch(folder / CAPTIONS_FILE, CAPTION_SCHEMA)
    sizes = samples.select(["width", "height", "size"])
    ranges = "min(width), max(width), min(height), max(height), sum(size)::BIGINT"
    *size_range, image_bytes = queries.ask(f"SELECT {ranges} FROM rows", sizes)[0]  # noqa: S608
    num_tokens = np.zeros(MAX_TOKENS + 1, np.int64)
    for each in lengths(list_parts(captions.column("tokens"))[0]):
        num_tokens += np.bincount(each, minlength=len(num_tokens))
    repetitions = {"text": queries.repetition(captions.column("text"), captions.column("text"))}
    for name in (SHA256, DHASH):
        if (path := folder / COLUMNS_DIR / f"{name}.arrow").is_file():
            values = map_batch(path).column(COLUMN_FIELD)
            repetitions[name] = queries.repetition(values, samples.column("key"))
    return {
        "num_samples": samples.num_rows,
        "num_texts": captions.num_rows,
        **rejections_of(folder, directory, queries),
        "image_size_range": tuple(size_range),
        "image_bytes": image_bytes,
        "tokens_per_text": _token_statistics(num_tokens),
        "num_tokens": tuple(num_tokens.tolist()),
        "histograms": {name: queries.histogram(sizes, *bins) for name, bins in _HISTOGRAMS.items()},
        "repetitions": repetitions,
    }


def rejections_of(folder: Path, directory: Path, queries: Queries) -> dict[str, Any]:
    """Counts of rejected samples by reason, most frequent first, and examples of each."""
    rejected = map_batch(folder / REJECTED_FILE, REJECTED_SCHEMA)
    reasons = pa.record_batch([rejected.column("reason")], ["value"])
    numbers = pa.array(np.arange(rejected.num_rows))
    numbered = pa.RecordBatch.from_arrays([numbers, *reasons.columns], ["row", "reason"])
    counted = queries.ask(
        f"SELECT reason, count(*), min(row, {_NUM_EXAMPLES}) FROM rows GROUP BY reason "  # noqa: S608
        "ORDER BY count(*) DESC, min(row)",
        numbered,
    )
    examples: dict[str, list[Rejection]] = {}
    for reason, _, first in sorted(counted, key=lambda each: each[2][0]):
        found = (Rejection(**rejected.slice(row, 1).to_pylist()[0]) for row in first)
        examples[reason] = [
            each._replace(shard=absolute_location(each.shard, directory)) for each in found
        ]
    return {"rejections": {reason: n for reason, n, _ in counted}, "examples": examples}


def _token_statistics(num_tokens: NDArray[np.int64]) -> tuple[float, int, int]:
    """Mean, 99th percentile and largest number of ids of a text."""
    total = int(num_tokens.sum())
    mean = float(num_tokens @ np.arange(len(num_tokens))) / total
    at = int(np.searchsorted(np.cumsum(num_tokens), 0.99 * total))
    return mean, at, int(np.flatnonzero(num_tokens)[-1])


def source_sizes(shards: Iterable[ShardRecord]) -> dict[str, int]:
    """Usable samples by source, in the order of their names."""
    sizes: Counter[str] = Counter()
    for record in sorted(shards, key=lambda each: each.source):
        sizes[record.source] += record.num_samples
    return dict(sizes)
