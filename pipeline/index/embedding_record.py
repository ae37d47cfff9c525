"""What stored text embeddings are of, and the checks that hold them to it: `embeddings.json`.

Shapes: K texts of a source, E length of an embedding, P rows of a part.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tessera.pipeline.durable import write_text
from tessera.pipeline.index import Index
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.storage import head_tail_crc32

EMBEDDINGS_DIR = "embeddings"
RECORD_FILE = "embeddings.json"
DTYPE = np.dtype("<f2")
"""Of the stored numbers."""
_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderRecord:
    """What made the embeddings."""

    id: str
    """Name of the encoder, such as that of its folder."""
    path: str
    """Folder it was read from; where it lies does not matter to whoever reads the store."""
    revision: str
    """SHA-256 (hex) over its configuration and weights; empty if that is not known."""
    pooling: str
    """How the states of the tokens became one vector: mean, cls or last."""
    dim: int
    """E."""
    dtype: str
    """Precision it computed in."""
    settings: str = ""
    """What else decides an embedding, in words: attention, longest text, unit length."""

    @property
    def identity(self) -> str:
        """What must be the same for two embeddings to be comparable; for people and checkpoints.

        Folders are renamed: the name takes part only where the content is not known.
        """
        how = f"{self.pooling}, {self.settings}" if self.settings else self.pooling
        what = f"sha256:{self.revision[:16]}" if self.revision else self.id
        return f"{what} ({how})"

    def content(self) -> dict[str, str | int]:
        """The fields that decide an embedding; the name among them only as in `identity`."""
        names = {"path", "id"} if self.revision else {"path"}
        return {name: value for name, value in asdict(self).items() if name not in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRecord:
    """Content of embeddings.json."""

    index_fingerprint: str
    """Of the index whose captions these are."""
    source: str
    """Name of the caption source."""
    source_fingerprint: str
    """Of the caption source's file."""
    num_texts: int
    """K."""
    rows_per_part: int
    """P."""
    encoder: EncoderRecord
    """What made them."""

    @property
    def num_parts(self) -> int:
        """Files of the store."""
        return -(-self.num_texts // self.rows_per_part)

    def span(self, part: int) -> tuple[int, int]:
        """First row of a part and the one behind its last."""
        first = part * self.rows_per_part
        return first, min(first + self.rows_per_part, self.num_texts)

    def part_bytes(self, part: int) -> int:
        """Size of a part's file."""
        first, last = self.span(part)
        return (last - first) * self.encoder.dim * DTYPE.itemsize


def source_fingerprint(index: Index, captions: CaptionTable) -> str:
    """SHA-256 (hex) that tells one state of a caption source from another.

    Over the index's fingerprint and the extent, size and first and last 64 KiB of the source's
    file; an added source's own fingerprint, which covers every text, takes part.
    """
    record = index.caption_record(captions.path.stem)
    identity = (
        index.fingerprint,
        record.fingerprint if record else "",
        captions.num_texts,
        len(captions.token_ids),
        captions.path.stat().st_size,
        head_tail_crc32(str(captions.path)),
    )
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def store_folder(index: Index, name: str, source: str) -> Path:
    """Where the embeddings of a source lie."""
    return index.directory / EMBEDDINGS_DIR / name / source


def part_path(folder: Path, part: int) -> Path:
    """File of a part."""
    return folder / f"{part:05d}.f16"


def _hint(folder: Path) -> str:
    name, source = folder.parent.name, folder.name
    return f"run `python tools/embed_captions.py INDEX --name {name} --sources {source} ...`"


def write_store_record(folder: Path, record: StoreRecord) -> None:
    """Write the record of a new store."""
    content = {"format_version": _FORMAT_VERSION, **asdict(record)}
    write_text(folder / RECORD_FILE, json.dumps(content, indent=1) + "\n")


def read_store_record(folder: Path, name: str, source: str) -> StoreRecord:
    """The record of a store.

    Raises:
        ValueError: there is none of that name, it is damaged or of another format version.
    """
    path = folder / RECORD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version == _FORMAT_VERSION:
            return StoreRecord(**{**content, "encoder": EncoderRecord(**content["encoder"])})
    except FileNotFoundError:
        store = folder.parent.parent
        there = (path.parent for path in store.glob(f"*/*/{RECORD_FILE}"))
        known = ", ".join(sorted(f"{one.parent.name}/{one.name}" for one in there)) or "none"
        raise ValueError(
            f"there are no embeddings {name!r} of the caption source {source!r} in {store}; "
            f"there are: {known}. To make them {_hint(folder)}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it and {_hint(folder)}") from error
    raise ValueError(f"{path} has format version {version}, this code reads {_FORMAT_VERSION}")


def check_captions(record: StoreRecord, index: Index, folder: Path) -> None:
    """See that a store is of the captions that the index has now.

    Raises:
        ValueError: it is not; names both values.
    """
    captions = index.captions(folder.name)
    pairs = {
        "source's name": (record.source, folder.name),
        "index": (record.index_fingerprint, index.fingerprint),
        "number of texts": (record.num_texts, captions.num_texts),
        "caption source": (record.source_fingerprint, source_fingerprint(index, captions)),
    }
    for what, (stored, current) in pairs.items():
        if stored != current:
            raise ValueError(
                f"the embeddings {folder} are of another {what}: made for {stored}, here it is "
                f"{current}; remove them and {_hint(folder)}"
            )


def check_complete(folder: Path, record: StoreRecord) -> None:
    """See that every row is there and every file has its size.

    Raises:
        ValueError: rows are missing or a file is damaged.
    """
    missing = missing_parts(folder, record)
    if missing:
        num_rows = sum(last - first for first, last in map(record.span, missing))
        raise ValueError(
            f"{num_rows} of the {record.num_texts} embeddings in {folder} are missing (part "
            f"{missing[0]} first); the same command goes on: {_hint(folder)}"
        )
    for part in range(record.num_parts):
        path = part_path(folder, part)
        found, expected = path.stat().st_size, record.part_bytes(part)
        if found != expected:
            raise ValueError(
                f"{path} is damaged: {found} bytes instead of {expected}; remove it and "
                f"{_hint(folder)}"
            )


def missing_parts(folder: Path, record: StoreRecord) -> list[int]:
    """Numbers of the parts that are not there."""
    there = {path.name for path in folder.glob("*.f16")}
    return [part for part in range(record.num_parts) if f"{part:05d}.f16" not in there]
