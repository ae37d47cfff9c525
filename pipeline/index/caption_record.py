"""What is known of a caption source that was added to an index: the JSON beside its Arrow file.

A source does not change the index's fingerprint. It names the state of the index that it was joined
to, and has a fingerprint of its own, which a run's checkpoint records.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tessera.pipeline.durable import write_text

_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRecord:
    """Origin and extent of an added caption source."""

    index_fingerprint: str
    """Of the index whose samples own the texts."""
    fingerprint: str
    """SHA-256 (hex) over the texts, their token ids and their owners."""
    tokenizer: str
    """Which tokenizer made the token ids."""
    inputs: tuple[dict[str, Any], ...]
    """Name, size in bytes and CRC-32 of the first and last 64 KiB of each file read."""
    join: str
    """How rows found their samples: key, url or row."""
    num_texts: int
    """Texts in the source."""
    num_samples: int
    """Samples with at least one text."""
    coverage: float
    """The same as a share of the index's samples, 0 to 1."""
    counts: dict[str, int]
    """What became of the rows and texts of the input; see `ImportReport`."""


def record_path(captions: Path) -> Path:
    """Where the record of `captions/<source>.arrow` lies."""
    return captions.with_suffix(".json")


def write_record(captions: Path, record: CaptionRecord) -> None:
    """Write the record of a caption file.

    Raises:
        OSError: it could not be written; an older one is as it was.
    """
    content = {"format_version": _FORMAT_VERSION, **asdict(record)}
    write_text(record_path(captions), json.dumps(content, indent=1) + "\n")


def read_record(captions: Path) -> CaptionRecord | None:
    """The record of a caption file; None for one that was written with the index.

    Raises:
        ValueError: it is damaged or of another format version.
    """
    path = record_path(captions)
    if not path.is_file():
        return None
    hint = f"add the source again with `python tools/add_captions.py INDEX {captions.stem} ...`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version == _FORMAT_VERSION:
            return CaptionRecord(**{**content, "inputs": tuple(content["inputs"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {hint}") from error
    raise ValueError(f"{path} has format version {version}, not {_FORMAT_VERSION}; {hint}")
