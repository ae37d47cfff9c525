"""What making an index found, for people and programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tessera.pipeline.index.merge import Merged
from tessera.pipeline.index.rejection import Rejection
from tessera.pipeline.index.survey import Histogram, Repetition


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


def make_report(merged: Merged, index_dir: Path, **given: Any) -> IndexReport:
    """The report of an index that was written; `given` are the fields that it does not tell."""
    survey = merged.survey
    sizes: Counter[str] = Counter()
    for record in sorted(merged.shards, key=lambda each: each.source):
        sizes[record.source] += record.num_samples
    return IndexReport(
        index_dir=index_dir,
        fingerprint=merged.fingerprint,
        num_samples=merged.num_samples,
        num_texts=merged.num_texts,
        rejections=merged.rejections,
        examples=merged.examples,
        source_sizes=dict(sizes),
        image_size_range=(*survey.width_range, *survey.height_range),
        image_bytes=survey.image_bytes,
        tokens_per_text=survey.token_statistics(),
        num_tokens=tuple(survey.num_tokens.tolist()),
        histograms={
            "shorter_side": survey.shorter_side,
            "aspect_ratio": survey.aspect_ratio,
            "file_kib": survey.file_kib,
        },
        repetitions=merged.repetitions,
        **given,
    )
