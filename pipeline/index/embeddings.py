"""Embeddings of a caption source's texts, made once and memory-mapped: one row for each text.

    INDEX/embeddings/NAME/SOURCE/embeddings.json   what they are of and what made them
    INDEX/embeddings/NAME/SOURCE/00000.f16 ...     parts of equally many rows, the last one shorter

A part is raw little-endian float16, row after row. It appears when it is whole, so a writer that
was killed resumes with the parts that are missing, and several can share the work.

Shapes: K texts of a source, E length of an embedding, B rows asked for, P rows of a part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.durable import remove_partials, write_bytes, write_text
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.index.open import Index
from tessera.pipeline.storage import head_tail_crc32

EMBEDDINGS_DIR = "embeddings"
RECORD_FILE = "embeddings.json"
ROWS_PER_PART = 16_384
"""P of new stores: what a killed writer does again at most."""
_DTYPE = np.dtype("<f2")
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
    source: str
    source_fingerprint: str
    """Of the caption source's file."""
    num_texts: int
    rows_per_part: int
    encoder: EncoderRecord

    @property
    def num_parts(self) -> int:
        """Files of the store."""
        return -(-self.num_texts // self.rows_per_part)

    def span(self, part: int) -> tuple[int, int]:
        """First row of a part and the one after its last."""
        first = part * self.rows_per_part
        return first, min(first + self.rows_per_part, self.num_texts)

    def missing(self, folder: Path) -> list[int]:
        """Numbers of the parts that are not there."""
        there = {path.name for path in folder.glob("*.f16")}
        return [part for part in range(self.num_parts) if _part(folder, part).name not in there]

    def check(self, index: Index, folder: Path) -> None:
        """See that a store is of the captions that the index has now.

        Raises:
            ValueError: it is not; names both values.
        """
        captions = index.captions(folder.name)
        pairs = {
            "source's name": (self.source, folder.name),
            "index": (self.index_fingerprint, index.fingerprint),
            "number of texts": (self.num_texts, captions.num_texts),
            "caption source": (self.source_fingerprint, source_fingerprint(index, captions)),
        }
        for what, (stored, current) in pairs.items():
            if stored != current:
                raise ValueError(
                    f"the embeddings {folder} are of another {what}: made for {stored}, here it is "
                    f"{current}; remove them and {_hint(folder)}"
                )

    def check_complete(self, folder: Path) -> None:
        """See that every row is there and every file has its size.

        Raises:
            ValueError: rows are missing or a file is damaged.
        """
        if missing := self.missing(folder):
            num_rows = sum(last - first for first, last in map(self.span, missing))
            raise ValueError(
                f"{num_rows} of the {self.num_texts} embeddings in {folder} are missing (part "
                f"{missing[0]} first); the same command resumes: {_hint(folder)}"
            )
        for part in range(self.num_parts):
            path, (first, last) = _part(folder, part), self.span(part)
            found, expected = path.stat().st_size, (last - first) * self.encoder.dim * 2
            if found != expected:
                raise ValueError(
                    f"{path} is damaged: {found} bytes instead of {expected}; remove it and "
                    f"{_hint(folder)}"
                )


def read_store_record(folder: Path) -> StoreRecord:
    """The record of the store in `INDEX/embeddings/NAME/SOURCE`.

    Raises:
        ValueError: there is none, it is damaged or of another format version.
    """
    path = folder / RECORD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version == _FORMAT_VERSION:
            return StoreRecord(**{**content, "encoder": EncoderRecord(**content["encoder"])})
    except FileNotFoundError:
        store = folder.parent.parent
        there = (found.parent for found in store.glob(f"*/*/{RECORD_FILE}"))
        known = ", ".join(sorted(f"{one.parent.name}/{one.name}" for one in there)) or "none"
        raise ValueError(
            f"there are no embeddings {folder.parent.name!r} of the caption source "
            f"{folder.name!r} in {store}; there are: {known}. To make them {_hint(folder)}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it and {_hint(folder)}") from error
    raise ValueError(f"{path} has format version {version}, this code reads {_FORMAT_VERSION}")


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


def _store(index: Index, name: str, source: str) -> Path:
    return index.directory / EMBEDDINGS_DIR / name / source


def _part(folder: Path, part: int) -> Path:
    return folder / f"{part:05d}.f16"


def _hint(folder: Path) -> str:
    name, source = folder.parent.name, folder.name
    return f"run `python tools/embed_captions.py INDEX --name {name} --sources {source} ...`"


class TextEmbeddings:
    """The embeddings of all texts of one caption source, views of the mapped files."""

    def __init__(self, index: Index, name: str, source: str) -> None:
        """Map a store; see `open_text_embeddings`."""
        self._origin = (index, name, source)
        self._folder = _store(index, name, source)
        self._record = read_store_record(self._folder)
        self._record.check(index, self._folder)
        self._record.check_complete(self._folder)
        self.encoder = self._record.encoder
        """What made them."""
        self.dim = self.encoder.dim
        """E."""
        self.num_texts = self._record.num_texts
        """K."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over captions and encoder; the folders they lie in are no part of it."""
        content = asdict(self._record) | {"encoder": self.encoder.content()}
        del content["rows_per_part"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def lookup(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Embeddings of some texts.

        Args:
            rows: [B] rows of the source's `CaptionTable`, in any order, also repeated.

        Returns:
            [B, E] float16, as the encoder gave them: not of unit length unless it makes them so.

        Raises:
            IndexError: a row is none of the source.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_texts:
            raise IndexError(
                f"rows {rows.min()} to {rows.max()} are not all among the {self.num_texts} "
                f"embeddings of {self._folder}"
            )
        found = np.empty((len(rows), self.dim), dtype=np.float16)
        order = np.argsort(rows)
        part_of, places = np.divmod(rows[order], self._record.rows_per_part)
        parts, starts = np.unique(part_of, return_index=True)
        for part, start, end in zip(parts, starts, [*starts, len(rows)][1:], strict=True):
            found[order[start:end]] = self._parts[part][places[start:end]]
        return found

    @cached_property
    def _parts(self) -> list[NDArray[np.float16]]:
        """[P, E] of each part. Arrow's maps need no file descriptor for each, numpy's do."""
        views = []
        for part in range(self._record.num_parts):
            with pa.memory_map(str(_part(self._folder, part))) as file:
                views.append(np.frombuffer(file.read_buffer(), _DTYPE).reshape(-1, self.dim))
        return views

    def __reduce__(self) -> tuple[Any, ...]:
        """Map the files again in the process that unpickles this."""
        return TextEmbeddings, self._origin


def open_text_embeddings(index: Index, name: str, source: str) -> TextEmbeddings:
    """Open the embeddings of a caption source; nothing is read but sizes.

    Raises:
        ValueError: there are none of that name, they are of another state of the index or the
            source, rows are missing, or a file is damaged. The message names both values.
    """
    return TextEmbeddings(index, name, source)


class EmbeddingWriter:
    """Writes a store part by part, from the start or where another writer stopped."""

    def __init__(
        self,
        index: Index,
        name: str,
        source: str,
        encoder: EncoderRecord,
        rows_per_part: int = ROWS_PER_PART,
    ) -> None:
        """Begin a store, or take one up that the same encoder began for the same captions.

        Args:
            index: whose captions are embedded.
            name: of the embeddings: one part of a path.
            source: the caption source.
            encoder: what makes them.
            rows_per_part: P of a new store; one that is there keeps its own.

        Raises:
            ValueError: the name cannot be one, there is no such source or it holds no text, or a
                store of that name was begun for other captions or by another encoder.
            OSError: the folder cannot be written.
        """
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError(f"{name!r} cannot be the name of embeddings: it becomes a folder's")
        captions = index.captions(source)
        if not captions.num_texts:
            raise ValueError(f"the caption source {source!r} holds no text to embed")
        self._folder = _store(index, name, source)
        self._record = StoreRecord(
            index_fingerprint=index.fingerprint,
            source=source,
            source_fingerprint=source_fingerprint(index, captions),
            num_texts=captions.num_texts,
            rows_per_part=rows_per_part,
            encoder=encoder,
        )
        if (self._folder / RECORD_FILE).is_file():
            remove_partials(self._folder, RECORD_FILE)
            self._take_up(read_store_record(self._folder), index)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            content = {"format_version": _FORMAT_VERSION, **asdict(self._record)}
            write_text(self._folder / RECORD_FILE, json.dumps(content, indent=1) + "\n")

    @property
    def num_parts(self) -> int:
        """Files that the store will have."""
        return self._record.num_parts

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there yet."""
        return self._record.missing(self._folder)

    def rows(self, part: int) -> NDArray[np.int64]:
        """Rows of the caption source that a part holds."""
        return np.arange(*self._record.span(part))

    def write(self, part: int, embeddings: NDArray[np.floating]) -> None:
        """Store a part, [P, E] of `rows(part)`; it is on the disk when this returns.

        Raises:
            ValueError: the shape is another one, or a number is not finite in float16.
            OSError: it could not be written.
        """
        first, last = self._record.span(part)
        expected = (last - first, self._record.encoder.dim)
        if embeddings.shape != expected:
            raise ValueError(
                f"part {part} needs embeddings {list(expected)}, got {list(embeddings.shape)}"
            )
        with np.errstate(over="ignore"):
            stored = embeddings.astype(_DTYPE)
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{len(bad)} embeddings are not finite in float16, such as that of text "
                f"{first + bad[0]} of {self._record.source!r}"
            )
        path = _part(self._folder, part)
        remove_partials(self._folder, path.name)
        write_bytes(path, stored.data)

    def _take_up(self, found: StoreRecord, index: Index) -> None:
        """Resume a store that was begun, if it is of the same captions and encoder."""
        found.check(index, self._folder)
        mine, theirs = asdict(self._record.encoder), asdict(found.encoder)
        other = [what for what in self._record.encoder.content() if mine[what] != theirs[what]]
        if other:
            raise ValueError(
                f"{self._folder} was begun with another encoder: "
                + ", ".join(f"{what} {theirs[what]!r}, now {mine[what]!r}" for what in other)
                + "; give another --name, or remove that folder"
            )
        self._record = found


def write_text_embeddings(
    index: Index,
    name: str,
    source: str,
    encoder: EncoderRecord,
    batches: Iterable[NDArray[np.floating]],
) -> TextEmbeddings:
    """Store embeddings that come in the order of the source's texts: [*, E] each.

    Raises:
        ValueError: as for `EmbeddingWriter`, or there are more or fewer rows than texts.
    """
    writer = EmbeddingWriter(index, name, source, encoder)
    num_texts = index.captions(source).num_texts
    rows, part, num_rows = np.empty((0, encoder.dim), np.float32), 0, 0
    for batch in batches:
        num_rows += len(batch)
        rows = np.concatenate([rows, batch])
        while part < writer.num_parts and len(rows) >= len(writer.rows(part)):
            count = len(writer.rows(part))
            writer.write(part, rows[:count])
            rows, part = rows[count:], part + 1
    if num_rows != num_texts:
        raise ValueError(f"{num_rows} embeddings for the {num_texts} texts of {source!r}")
    return open_text_embeddings(index, name, source)
