"""From rows of files to a caption source beside an index.

    reader ▸ rows joined to samples and put in their order, in SQL ▸ tokenise
           ▸ captions/<source>.arrow and .json

DuckDB joins and sorts, and spills to a temporary folder what does not fit into its memory. The
source appears when it is complete; what is refused leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.caption_record import CaptionRecord, record_path, write_record
from tessera.pipeline.caption_sources.laclip import OrderProof
from tessera.pipeline.caption_sources.rows import Reader, RowBatch
from tessera.pipeline.captions import CAPTION_SCHEMA, caption_batch
from tessera.pipeline.durable import sync_folder, work_folder
from tessera.pipeline.index import CAPTIONS_DIR, DEFAULT_SOURCE, SOURCE_SEPARATOR, Index
from tessera.pipeline.index.spool import TableSpool
from tessera.pipeline.index.tokenizer import encode_captions
from tessera.pipeline.storage import head_tail_crc32
from tessera.pipeline.workers import map_in_processes

_SAMPLES_AT_ONCE = 2048
_KEYS_AT_ONCE = 1 << 17
_HASHED_BYTES = 1 << 26
_MEMORY = "512MB"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_GIVEN = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.large_string()),
        ("source", pa.int32()),
        ("place", pa.string()),
        ("texts", pa.list_(pa.string())),
    ]
)
"""Rows of the files; `source` is -1 where a key names none."""
_BY_ROW = "SELECT row AS sample, row FROM given WHERE row < $m"
_BY_VALUE = """
SELECT sample, row FROM given JOIN known
ON given.key = known.key AND (given.source < 0 OR given.source = known.source)
WHERE given.key != ''
"""
_WITH_TEXT = """
CREATE TEMP TABLE written AS SELECT sample, row FROM matched
SEMI JOIN (SELECT row FROM given WHERE len(texts) > 0) USING (row)
"""
_CHOSEN = {
    "first": "CREATE TEMP TABLE chosen AS SELECT sample, min(row) AS row FROM written GROUP BY ALL",
    "last": "CREATE TEMP TABLE chosen AS SELECT sample, max(row) AS row FROM written GROUP BY ALL",
    "all": "CREATE TEMP TABLE chosen AS FROM written",
}
Progress = Callable[[str, int], object]
"""Is told what is being done and how many rows or texts of it are done on top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """How rows find their samples and become texts."""

    join: Literal["key", "url", "row", "order"] = "key"
    """By key or URL; by their number, proven by the words shared with the originals (row), or
    without a proof, as rows that were read from the shards need none (order)."""
    source: str = ""
    """The source of the index that keys without one are of; empty if that is to be seen."""
    repeats: Literal["first", "last", "all"] = "first"
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
    with place as made, _Rows(index, options, Path(made)) as rows:
        folder = Path(made)
        rows.read(reader, report, progress)
        rows.match(report)
        spool = TableSpool(folder, "captions", CAPTION_SCHEMA)
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


class _Rows:
    """The rows of the files in a database, and the samples that they belong to."""

    def __init__(self, index: Index, options: ImportOptions, folder: Path) -> None:
        names = index.source_names
        if options.source and options.source not in names:
            known = ", ".join(names)
            raise ValueError(f"the index has no source {options.source!r}; it has: {known}")
        self._index, self._options = index, options
        self._sources = names if options.join == "key" and len(names) > 1 else []
        self._usual = names.index(options.source) if options.source else -1
        self._values = None
        if options.join in ("key", "url"):
            by_key = options.join == "key"
            self._values = index.table.column("key") if by_key else index.column("url")
        self._database = duckdb.connect(
            config={
                "threads": min(4, os.cpu_count() or 1),
                "memory_limit": _MEMORY,
                "temp_directory": str(folder / "spilled"),
            }
        )

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def read(self, reader: Reader, report: ImportReport, progress: Progress) -> None:
        """Take up all rows.

        Raises:
            ValueError: a row cannot be read, or rows are not proven to be of their samples.
        """
        proof = OrderProof(self._index) if self._options.join == "row" else None
        self._load("given", [self._given(RowBatch(first_row=0))])
        for batch in reader.batches():
            if proof:
                proof.add(batch)
            self._load("given", [self._given(batch)])
            report.num_rows += len(batch.texts)
            report.num_rows_without_text += sum(not texts for texts in batch.texts)
            progress("reading", len(batch.texts))
        overlaps = [proof.finish()] if proof else getattr(reader, "overlap", [])
        report.overlap = min((each for each in overlaps if each is not None), default=None)

    def match(self, report: ImportReport) -> None:
        """Find the samples of all rows, and the rows that count.

        Raises:
            ValueError: no row is of a sample, or a key is of several sources.
        """
        if self._values is None:
            pairs = _BY_ROW
        else:
            self._load("known", self._known())
            pairs = _BY_VALUE
        self._run(f"CREATE TEMP TABLE matched AS {pairs}", {"m": self._index.num_samples})
        found = self._one("SELECT count(DISTINCT row) FROM matched")
        report.num_unknown = report.num_rows - found
        if not found and self._values is not None:
            raise ValueError(self._nothing_matched())
        if self._sources:
            self._check_sources()
        self._run(_WITH_TEXT)
        self._run(_CHOSEN[self._options.repeats])
        report.num_samples = self._one("SELECT count(DISTINCT sample) FROM chosen")
        report.num_repeated = self._one(
            "SELECT (SELECT count(*) FROM written) - (SELECT count(*) FROM chosen)"
        )

    def by_sample(self) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
        """Owners and texts, in the order of the samples and, of one sample, of the rows."""
        ordered = "SELECT sample, texts FROM chosen JOIN given USING (row) ORDER BY sample, row"
        for batch in self._database.sql(ordered).to_arrow_reader(_SAMPLES_AT_ONCE):
            texts = batch.column("texts")
            lengths = texts.value_lengths().to_numpy()
            yield np.repeat(batch.column("sample").to_numpy(), lengths), texts.flatten()

    def _given(self, batch: RowBatch) -> pa.RecordBatch:
        """A batch as the database has it; the source that a key names is cut off."""
        count = len(batch.texts)
        keys = batch.keys or [""] * count
        sources = np.full(count, self._usual, np.int32)
        if self._sources:
            parts = [key.partition(SOURCE_SEPARATOR) for key in keys]
            named = [bool(sep) and source in self._sources for source, sep, _ in parts]
            for row in np.flatnonzero(named):
                sources[row] = self._sources.index(parts[row][0])
            keys = [parts[row][2] if named[row] else key for row, key in enumerate(keys)]
        columns = [
            pa.array(np.arange(count) + batch.first_row),
            pa.array(keys, pa.large_string()),
            pa.array(sources),
            pa.array([batch.place_of(row) if self._sources else "" for row in range(count)]),
            pa.array([[text.strip() for text in texts] for texts in batch.texts], _GIVEN[4].type),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=_GIVEN)

    def _known(self) -> Iterator[pa.RecordBatch]:
        """The key or URL of each sample, and its source where that matters."""
        assert self._values is not None
        for start in range(0, self._index.num_samples, _KEYS_AT_ONCE):
            keys = self._values[start : start + _KEYS_AT_ONCE]
            ids = np.arange(start, start + len(keys))
            several = bool(self._sources)
            sources = self._index.sources_of(ids) if several else np.zeros(len(ids), np.int32)
            columns = [pa.array(ids), keys, pa.array(sources)]
            yield pa.RecordBatch.from_arrays(columns, ["sample", "key", "source"])

    def _load(self, name: str, batches: Any) -> None:
        """Put batches at the end of a table, which the first one makes."""
        for batch in batches:
            self._database.register("batch", batch)
            self._run(f"CREATE TABLE IF NOT EXISTS {name} AS FROM batch LIMIT 0")
            self._run(f"INSERT INTO {name} FROM batch")

    def _check_sources(self) -> None:
        """See that no key is of several sources.

        Raises:
            ValueError: one is, and nothing says which one is meant.
        """
        row = self._one(
            "SELECT min(row) FROM (SELECT row FROM matched GROUP BY row HAVING count(*) > 1)"
        )
        if row is None:
            return
        samples = self._run("SELECT sample FROM matched WHERE row = $r ORDER BY sample", {"r": row})
        both = " and ".join(self._index.keys([sample for (sample,) in samples]))
        ((key, place),) = self._run("SELECT key, place FROM given WHERE row = $r", {"r": row})
        raise ValueError(
            f"{place}: the key {key!r} is that of {both}: write keys so, or name the source that "
            "all are of with --source"
        )

    def _nothing_matched(self) -> str:
        theirs = self._one("SELECT coalesce(min(key), '') FROM given WHERE row = 0")
        ours = self._one("SELECT coalesce(min(key), '') FROM known WHERE key != ''")
        return (
            f"no {self._options.join} of the files is one of the index: theirs are like "
            f"{theirs!r}, the index has ones like {ours!r}. Choose another --key-column, or "
            "--stem True for paths whose file name is the key"
        )

    def _run(self, query: str, values: dict[str, int] | None = None) -> list[tuple[Any, ...]]:
        values = {name: value for name, value in (values or {}).items() if f"${name}" in query}
        return self._database.execute(query, values).fetchall()

    def _one(self, query: str) -> Any:
        return self._run(query)[0][0]


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
