"""From rows of files to a caption source beside an index.

    reader ▸ rows joined to samples and put in their order, in SQL ▸ tokenise
           ▸ captions/<source>.arrow and .json

DuckDB joins and sorts, and spills to a temporary folder what does not fit into its memory. The
source appears when it is complete; what is refused leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.durable import sync_folder, work_folder
from tessera.pipeline.index import CAPTIONS_DIR, DEFAULT_SOURCE, Index
from tessera.pipeline.index.arrow_file import TableWriter
from tessera.pipeline.index.caption_readers import Reader
from tessera.pipeline.index.captions import (
    CAPTION_SCHEMA,
    CaptionRecord,
    caption_batch,
    record_path,
    write_record,
)
from tessera.pipeline.index.joined_rows import ImportOptions, ImportReport, JoinedRows, Progress
from tessera.pipeline.index.tokenizer import encode_captions
from tessera.pipeline.storage import head_tail_crc32
from tessera.pipeline.workers import map_in_processes

_HASHED_BYTES = 1 << 26
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


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
    options: ImportOptions,
    progress: Progress = lambda _what, _count: None,
) -> ImportReport:
    """Add a caption source to an index, or see what that would give.

    Args:
        index: whose samples own the texts.
        name: of the source: small letters, digits, `_` and `-`.
        reader: of the files.
        options: how rows find their samples and become texts.
        progress: is told how far it has come.

    Raises:
        ValueError: the name is taken or no name, a row cannot be read, or rows are not proven to
            belong to their samples. Nothing is changed then.
        OSError: the source cannot be written.
        RuntimeError: a worker process was killed, or another process is adding this source.
    """
    path = index.directory / CAPTIONS_DIR / f"{name}.arrow"
    _check_name(name, path, options)
    report = ImportReport()
    # Beside the result, so that it can be renamed; hidden, so that nobody takes it for one.
    place = tempfile.TemporaryDirectory() if options.dry_run else work_folder(path.with_suffix(""))
    with place as made, JoinedRows(index, options, Path(made)) as rows:
        folder = Path(made)
        rows.read(reader, report, progress)
        rows.match(report)
        spool = TableWriter(folder, "captions", CAPTION_SCHEMA)
        for encoded in _encoded(rows.by_sample(), options):
            report.num_texts += len(encoded.texts)
            report.num_short += encoded.num_short
            report.num_empty += encoded.num_empty
            if not options.dry_run:
                spool.append(caption_batch(encoded.texts, encoded.tokens, encoded.samples))
            progress("tokenising", len(encoded.texts))
        report.coverage = report.num_samples / index.num_samples
        if not report.num_texts:
            raise ValueError("no row of the files holds a text of a sample")
        if not options.dry_run:
            batch = spool.write(folder / path.name)
            report.fingerprint = _fingerprint(index, batch)
            _publish(folder, path, _record(index, reader, options, report))
    return report


def _check_name(name: str, path: Path, options: ImportOptions) -> None:
    if not _NAME.fullmatch(name) or name == DEFAULT_SOURCE:
        msg = f"{name!r} cannot be the name of a source: take small letters, digits, _ and -"
        raise ValueError(f"{msg}, and not {DEFAULT_SOURCE!r}, the original text")
    if path.exists() and not options.replace:
        raise ValueError(f"{path} is there already: give another name, or --replace")


def _encoded(
    texts: Iterator[tuple[NDArray[np.int64], pa.Array]], options: ImportOptions
) -> Iterator[_Encoded]:
    work = ((samples, own, options) for samples, own in texts)
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


def _fingerprint(index: Index, batch: pa.RecordBatch) -> str:
    digest = hashlib.sha256(index.fingerprint.encode())
    digest.update(str(batch.num_rows).encode())
    for buffer in (each for column in batch.columns for each in column.buffers() if each):
        view = memoryview(buffer)
        for start in range(0, len(view), _HASHED_BYTES):
            digest.update(view[start : start + _HASHED_BYTES])
    return digest.hexdigest()


def _record(
    index: Index, reader: Reader, options: ImportOptions, report: ImportReport
) -> CaptionRecord:
    return CaptionRecord(
        index_fingerprint=index.fingerprint,
        fingerprint=report.fingerprint,
        tokenizer=index.tokenizer,
        inputs=tuple(
            {
                "name": path.name,
                "size_bytes": path.stat().st_size,
                "head_tail_crc32": head_tail_crc32(str(path)),
            }
            for path in reader.files
            if path.is_file()
        ),
        join="row" if options.join == "order" else options.join,
        num_texts=report.num_texts,
        num_samples=report.num_samples,
        coverage=report.coverage,
        counts={name: value for name, value in asdict(report).items() if isinstance(value, int)},
    )


def _publish(folder: Path, path: Path, record: CaptionRecord) -> None:
    """Give the source its name; a crash on the way leaves no source of that name."""
    write_record(folder / path.name, record)
    path.unlink(missing_ok=True)
    record_path(folder / path.name).rename(record_path(path))
    (folder / path.name).rename(path)
    sync_folder(path.parent)
