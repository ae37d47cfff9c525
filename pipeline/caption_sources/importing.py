"""From rows of files to a caption source beside an index.

    reader ▸ join ▸ texts by sample, on disk ▸ tokenise ▸ captions/<source>.arrow and .json

The source appears when it is complete; what is refused leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.caption_record import CaptionRecord, record_path, write_record
from tessera.pipeline.caption_sources.joins import Join
from tessera.pipeline.caption_sources.partitions import TextPartitions
from tessera.pipeline.caption_sources.rows import Reader
from tessera.pipeline.captions import CAPTION_SCHEMA, caption_batch
from tessera.pipeline.durable import sync_folder, work_folder
from tessera.pipeline.index import CAPTIONS_DIR, DEFAULT_SOURCE, Index
from tessera.pipeline.index.spool import TableSpool
from tessera.pipeline.index.tokenizer import encode_captions
from tessera.pipeline.storage import head_tail_crc32
from tessera.pipeline.workers import map_in_processes

_TEXTS_AT_ONCE = 4096
_HASHED_BYTES = 1 << 26
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
Repeats = Literal["first", "last", "all"]
"""Which of several rows of the same sample count."""
Progress = Callable[[str, int], object]
"""Is told what is being done and how many rows or texts of it are done on top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """How rows become texts."""

    repeats: Repeats = "first"
    """Which of several rows of the same sample count: the first, the last, or all of them."""
    min_words: int = 2
    """A text with fewer words keeps its place and is never served: the original is, as LaCLIP does
    with rewrites of one word. 1 refuses only empty ones."""
    num_workers: int = 1
    """Processes that tokenise."""
    replace: bool = False
    """Put a source in the place of one with its name."""
    dry_run: bool = False
    """Read, join and count, and write nothing."""

    def __post_init__(self) -> None:
        if self.min_words < 1 or self.num_workers < 1:
            raise ValueError("min_words and num_workers must be at least 1")


@dataclass(kw_only=True, slots=True)
class ImportReport:
    """What became of the rows and texts of the input."""

    num_rows: int = 0
    """Rows read."""
    num_unknown: int = 0
    """Rows whose key or URL is none of the index."""
    num_rows_without_text: int = 0
    """Rows that hold no text at all, not even an empty one."""
    num_repeated: int = 0
    """Rows left out because another row of the same sample counts."""
    num_texts: int = 0
    """Texts in the source."""
    num_short: int = 0
    """Of them: texts of too few words, in whose place the original is served."""
    num_empty: int = 0
    """Of those: texts without any word."""
    num_samples: int = 0
    """Samples with at least one text."""
    coverage: float = 0.0
    """The same as a share of the index's samples, 0 to 1."""
    overlap: float | None = None
    """Where texts were joined by their order: words shared with the original, mean of the block of
    rows that is proven worst."""
    fingerprint: str = ""
    """Of the source; empty after a dry run."""


class _Encoded(NamedTuple):
    """Texts with their token ids; those of too few words have none."""

    samples: NDArray[np.int64]
    texts: pa.Array
    tokens: list[NDArray[np.uint16]]
    num_short: int
    num_empty: int


def import_captions(
    index: Index,
    name: str,
    reader: Reader,
    join: Join,
    join_name: str,
    options: ImportOptions,
    progress: Progress = lambda _what, _count: None,
) -> ImportReport:
    """Add a caption source to an index, or see what that would give.

    Args:
        index: whose samples own the texts.
        name: of the source: small letters, digits, `_` and `-`.
        reader: of the files.
        join: finds the samples of rows.
        join_name: for the record: key, url or row.
        options: how rows become texts.
        progress: is told how far it has come.

    Raises:
        ValueError: the name is taken or no name, a row cannot be read, or rows are not proven to
            belong to their samples. Nothing is changed then.
        OSError: the source cannot be written.
        RuntimeError: a worker process was killed, or another process is adding this source.
    """
    captions = index.directory / CAPTIONS_DIR
    path = captions / f"{name}.arrow"
    _check_name(name, path, options)
    report = ImportReport()
    # Beside the result, so that it can be renamed; hidden, so that nobody takes it for one.
    place = tempfile.TemporaryDirectory() if options.dry_run else work_folder(captions / name)
    with place as made:
        folder = Path(made)
        partitions = TextPartitions(folder, index.num_samples)
        _collect(reader, join, partitions, report, progress)
        report.overlap = join.finish()
        overlaps = getattr(reader, "overlap", [])
        if report.overlap is None and overlaps:
            report.overlap = min(overlaps)
        spool = TableSpool(folder, "captions", CAPTION_SCHEMA)
        chosen = _chosen(partitions, options.repeats, report)
        for encoded in _encoded(chosen, options):
            _count(encoded, report)
            if not options.dry_run:
                spool.append(caption_batch(encoded.texts, encoded.tokens, encoded.samples))
            progress("tokenising", len(encoded.texts))
        report.coverage = report.num_samples / index.num_samples
        if not report.num_texts:
            raise ValueError("no row of the files holds a text of a sample")
        if not options.dry_run:
            batch = spool.write(folder / path.name)
            report.fingerprint = _fingerprint(index, batch)
            _publish(folder, path, _record(index, reader, join_name, report))
    return report


def _check_name(name: str, path: Path, options: ImportOptions) -> None:
    if not _NAME.fullmatch(name) or name == DEFAULT_SOURCE:
        msg = f"{name!r} cannot be the name of a source: take small letters, digits, _ and -"
        raise ValueError(f"{msg}, and not {DEFAULT_SOURCE!r}, the original text")
    if path.exists() and not options.replace:
        raise ValueError(f"{path} is there already: give another name, or --replace")


def _collect(
    reader: Reader, join: Join, partitions: TextPartitions, report: ImportReport, progress: Progress
) -> None:
    """Join all rows and sort their texts by sample."""
    for batch in reader.batches():
        rows, ids = join.match(batch)
        num_rows = len(batch.texts)
        report.num_rows += num_rows
        report.num_unknown += num_rows - len(np.unique(rows))
        report.num_rows_without_text += sum(not texts for texts in batch.texts)
        counts = np.fromiter(map(len, batch.texts), np.int64, num_rows)[rows]
        partitions.add(
            np.repeat(ids, counts),
            np.repeat(rows + batch.first_row, counts),
            [text.strip() for row in rows.tolist() for text in batch.texts[row]],
        )
        progress("reading", num_rows)


def _chosen(
    partitions: TextPartitions, repeats: Repeats, report: ImportReport
) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
    """Owners and texts in the order of the samples, with the rows that count only."""
    for part in partitions.sorted_parts():
        samples, rows = (part.column(name).to_numpy() for name in ("sample", "row"))
        starts = np.flatnonzero(np.diff(samples, prepend=-1))
        report.num_samples += len(starts)
        ends = np.append(starts[1:], len(samples))
        keep = np.ones(len(samples), dtype=bool)
        if repeats != "all":
            wanted = rows[starts] if repeats == "first" else rows[ends - 1]
            keep = rows == np.repeat(wanted, ends - starts)
            pairs = np.count_nonzero(np.diff(rows, prepend=-1) | np.diff(samples, prepend=-1))
            report.num_repeated += int(pairs) - len(starts)
        texts = part.column("text")
        for first in range(0, len(samples), _TEXTS_AT_ONCE):
            there = np.flatnonzero(keep[first : first + _TEXTS_AT_ONCE]) + first
            if len(there):
                yield samples[there], texts.take(pa.array(there))


def _encoded(
    chosen: Iterator[tuple[NDArray[np.int64], pa.Array]], options: ImportOptions
) -> Iterator[_Encoded]:
    work = ((samples, texts, options) for samples, texts in chosen)
    if options.num_workers == 1 or options.dry_run:
        return map(_encode, work)
    return map_in_processes(_encode, work, options.num_workers)


def _encode(work: tuple[NDArray[np.int64], pa.Array, ImportOptions]) -> _Encoded:
    samples, array, options = work
    texts = array.to_pylist()
    words = np.fromiter((len(text.split(None, options.min_words)) for text in texts), np.int64)
    tokens = [] if options.dry_run else encode_captions(texts)
    short = words < options.min_words
    # A caption such as "&nbsp;" has letters and no tokens.
    none = np.fromiter((not len(ids) for ids in tokens), bool) if tokens else words == 0
    nothing = np.empty(0, np.uint16)
    return _Encoded(
        samples=samples,
        texts=array,
        tokens=[nothing if cut else ids for cut, ids in zip(short, tokens, strict=False)],
        num_short=int((short | none).sum()),
        num_empty=int(none.sum()),
    )


def _count(encoded: _Encoded, report: ImportReport) -> None:
    report.num_texts += len(encoded.texts)
    report.num_short += encoded.num_short
    report.num_empty += encoded.num_empty


def _fingerprint(index: Index, batch: pa.RecordBatch) -> str:
    digest = hashlib.sha256(index.fingerprint.encode())
    digest.update(str(batch.num_rows).encode())
    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None:
                view = memoryview(buffer)
                for start in range(0, len(view), _HASHED_BYTES):
                    digest.update(view[start : start + _HASHED_BYTES])
    return digest.hexdigest()


def _record(index: Index, reader: Reader, join_name: str, report: ImportReport) -> CaptionRecord:
    inputs = tuple(
        {
            "name": path.name,
            "size_bytes": path.stat().st_size,
            "head_tail_crc32": head_tail_crc32(str(path)),
        }
        for path in reader.files
    )
    counts = {name: value for name, value in asdict(report).items() if isinstance(value, int)}
    return CaptionRecord(
        index_fingerprint=index.fingerprint,
        fingerprint=report.fingerprint,
        tokenizer=index.tokenizer,
        inputs=inputs,
        join=join_name,
        num_texts=report.num_texts,
        num_samples=report.num_samples,
        coverage=report.coverage,
        counts=counts,
    )


def _publish(folder: Path, path: Path, record: CaptionRecord) -> None:
    """Give the source its name; a crash on the way leaves no source of that name."""
    write_record(folder / path.name, record)
    path.unlink(missing_ok=True)
    record_path(folder / path.name).rename(record_path(path))
    (folder / path.name).rename(path)
    sync_folder(path.parent)
