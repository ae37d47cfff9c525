"""Rows of caption files joined to the samples of an index, and put in their order, in SQL.

DuckDB spills to a folder what does not fit into its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.caption_readers import Reader, RowBatch
from tessera.pipeline.index.database import open_database
from tessera.pipeline.index.laclip import AlignmentCheck
from tessera.pipeline.index.open import DEFAULT_SOURCE, SOURCE_SEPARATOR, Index

_SAMPLES_AT_ONCE = 2048
_KEYS_AT_ONCE = 1 << 17
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


class JoinedRows:
    """The rows of the files in a database, and the samples that they belong to."""

    def __init__(self, index: Index, options: ImportOptions, folder: Path) -> None:
        names = index.source_names
        if options.source and options.source not in names:
            known = ", ".join(names)
            raise ValueError(f"the index has no source {options.source!r}; it has: {known}")
        self._index, self._options = index, options
        self._sources = names if options.join == "key" and len(names) > 1 else []
        self._usual = names.index(options.source) if options.source else -1
        self._loaded: set[str] = set()
        self._values = None
        if options.join in ("key", "url"):
            by_key = options.join == "key"
            self._values = index.table.column("key") if by_key else index.column("url")
        self._database = open_database(folder / "spilled")

    def __enter__(self) -> JoinedRows:
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
            pa.array(map(batch.place_of, range(count)) if self._sources else [""] * count),
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
            if name not in self._loaded:
                self._run(f"CREATE TABLE {name} AS FROM batch LIMIT 0")
                self._loaded.add(name)
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


class OrderProof:
    """Proves that row k of a file belongs to sample k of an index, by numbers and by words."""

    def __init__(self, index: Index) -> None:
        """Start with the first row; the samples' first texts are what rows are compared with."""
        self._originals = index.captions(DEFAULT_SOURCE)
        self._num_samples = index.num_samples
        self._num_rows = 0
        self._checks: list[AlignmentCheck] = []

    def add(self, batch: RowBatch) -> None:
        """Compare rows; batches come in their order.

        Raises:
            ValueError: rows share too few words with their samples.
        """
        ids = np.arange(self._num_rows, self._num_rows + len(batch.texts))
        self._num_rows += len(ids)
        if self._num_rows > self._num_samples:
            return
        originals = self._originals.texts(self._originals.draw(ids, np.zeros(len(ids))))
        for number in range(len(self._checks), max(map(len, batch.texts), default=0)):
            what = f"text {number + 1} of the files"
            self._checks.append(AlignmentCheck(what, first_row=int(ids[0])))
        for number, check in enumerate(self._checks):
            texts = (each[number] if number < len(each) else "" for each in batch.texts)
            check.add(originals, texts)

    def finish(self) -> float | None:
        """Judge the whole; returns the word overlap where it is proven worst.

        Raises:
            ValueError: the numbers differ, or the last rows share too few words.
        """
        if self._num_rows != self._num_samples:
            raise ValueError(
                f"the files have {self._num_rows:,} rows, the index {self._num_samples:,} samples: "
                "they cannot be joined by their order. Join by key or by URL; an index has no "
                "samples whose image could not be downloaded or read"
            )
        return min((check.finish() for check in self._checks), default=None)
