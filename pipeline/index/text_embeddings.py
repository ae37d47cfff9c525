"""Embeddings of a caption source's texts, made once and memory-mapped: one row for each text.

    INDEX/embeddings/NAME/SOURCE/embeddings.json   what they are of and what made them
    INDEX/embeddings/NAME/SOURCE/00000.f16 ...     parts of equally many rows, the last one shorter

A part is raw little-endian float16, row after row. It appears when it is whole, so a writer that
was killed goes on with the parts that are missing, and several can share the work.

Shapes: K texts of a source, E length of an embedding, B rows asked for, P rows of a part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.durable import remove_partials, write_bytes
from tessera.pipeline.index import Index
from tessera.pipeline.index.embedding_record import (
    DTYPE,
    EMBEDDINGS_DIR,
    RECORD_FILE,
    EncoderRecord,
    StoreRecord,
    check_captions,
    check_complete,
    missing_parts,
    part_path,
    read_store_record,
    source_fingerprint,
    store_folder,
    write_store_record,
)

__all__ = [
    "EMBEDDINGS_DIR",
    "EmbeddingWriter",
    "EncoderRecord",
    "TextEmbeddings",
    "open_text_embeddings",
    "write_text_embeddings",
]

ROWS_PER_PART = 16_384
"""P of new stores: what a killed writer does again at most."""


class TextEmbeddings:
    """The embeddings of all texts of one caption source, views of the mapped files."""

    def __init__(self, index: Index, name: str, source: str) -> None:
        """Map a store; see `open_text_embeddings`."""
        self._origin = (index, name, source)
        self._folder = store_folder(index, name, source)
        self._record = read_store_record(self._folder, name, source)
        check_captions(self._record, index, self._folder)
        check_complete(self._folder, self._record)
        self.dim = self._record.encoder.dim
        """E."""
        self.num_texts = self._record.num_texts
        """K."""
        self.encoder = self._record.encoder
        """What made them."""

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
            with pa.memory_map(str(part_path(self._folder, part))) as file:
                views.append(np.frombuffer(file.read_buffer(), DTYPE).reshape(-1, self.dim))
        return views

    def __reduce__(self) -> tuple[Any, ...]:
        """Map the files again in the process that unpickles this."""
        return TextEmbeddings, self._origin


def open_text_embeddings(index: Index, name: str, source: str) -> TextEmbeddings:
    """Open the embeddings of a caption source; nothing is read but sizes.

    Args:
        index: whose captions they are of.
        name: of the embeddings.
        source: the caption source.

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
        self._folder = store_folder(index, name, source)
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
            self._take_up(read_store_record(self._folder, name, source), index)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_store_record(self._folder, self._record)

    @property
    def num_parts(self) -> int:
        """Files that the store will have."""
        return self._record.num_parts

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there yet."""
        return missing_parts(self._folder, self._record)

    def rows(self, part: int) -> NDArray[np.int64]:
        """Rows of the caption source that a part holds."""
        return np.arange(*self._record.span(part))

    def write(self, part: int, embeddings: NDArray[np.floating]) -> None:
        """Store a part; it is on the disk when this returns.

        Args:
            part: its number.
            embeddings: [P, E] of `rows(part)`.

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
            stored = embeddings.astype(DTYPE)
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{len(bad)} embeddings are not finite in float16, such as that of text "
                f"{first + bad[0]} of {self._record.source!r}"
            )
        path = part_path(self._folder, part)
        remove_partials(self._folder, path.name)
        write_bytes(path, stored.data)

    def _take_up(self, found: StoreRecord, index: Index) -> None:
        """Go on with a store that was begun, if it is of the same captions and encoder."""
        check_captions(found, index, self._folder)
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
    """Store embeddings that come in the order of the source's texts.

    Args:
        index: whose captions they are of.
        name: of the embeddings.
        source: the caption source.
        encoder: what made them.
        batches: [*, E] each, in all one row for each text.

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
