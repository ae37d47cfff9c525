"""Every column that an expression can name: of the index, of its captions, of a joined table.

| column | of each sample |
|---|---|
| key, size, label | its key, bytes of its image file, class (missing where there is none) |
| source, source_key | data set that its shard is of; `SOURCE:KEY`, if there are several |
| shard | file name of its shard |
| width, height, shortest, longest, pixels, aspect | of the picture; aspect = longest / shortest |
| num_captions | texts in the caption source |
| text | its first text |
| min_caption_length, max_caption_length | characters of its shortest and longest text |
| min_num_tokens, max_num_tokens | token ids of its shortest and longest text |
| domain | host of `url`, lower case, without `www.` |

and whatever `columns/` of the index and a joined table hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from posixpath import basename

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.index import Index
from pipeline.selection.joined import JoinedTable
from pipeline.selection.values import Kind, Numbers, Values, from_arrow, kind_of, numbers

CHUNK_ROWS = 1 << 18
"""Rows that are looked at together; bounds the memory, decides nothing."""
_HOST = r"^(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//(?:[^/@?#]*@)?(?P<host>\[[^\]]*\]|[^/:?#]+)"
_LABEL = "label"


class Columns:
    """The columns of an index's samples, read for some rows at a time."""

    def __init__(
        self, index: Index, caption_source: str, joined: JoinedTable | None = None
    ) -> None:
        """List the columns; none is read yet.

        Args:
            index: whose samples they describe.
            caption_source: which texts `num_captions`, `text` and the lengths are of.
            joined: a table matched to the index.

        Raises:
            ValueError: the index has no such caption source.
        """
        self.index = index
        self.joined = joined
        self.kinds: dict[str, Kind] = {}
        """What each column holds, by name."""
        self._captions = index.captions(caption_source)
        self._readers: dict[str, Callable[[NDArray[np.int64]], Values]] = {}
        self._add_builtin()
        self._add_optional()
        if joined is not None:
            self._add_joined(joined)

    def read(self, name: str, ids: NDArray[np.int64]) -> Values:
        """A column of the samples `ids`."""
        return self._readers[name](ids)

    def chunks(self, ids: NDArray[np.int64]) -> Iterator[Chunk]:
        """The samples `ids`, some at a time."""
        for start in range(0, len(ids), CHUNK_ROWS):
            yield Chunk(self, ids[start : start + CHUNK_ROWS])

    def _add(self, name: str, kind: Kind, reader: Callable[[NDArray[np.int64]], Values]) -> None:
        self.kinds[name] = kind
        self._readers[name] = reader

    def _add_builtin(self) -> None:
        index, table = self.index, self._captions
        names = pa.array([basename(record.location) for record in index.shards], pa.large_string())
        sides = index.width, index.height
        self._add("key", "text", lambda ids: index.table.column("key").take(pa.array(ids)))
        if any(index.source_names):
            sources = pa.array(index.source_names, pa.large_string())
            self._add("source", "text", lambda ids: sources.take(pa.array(index.sources_of(ids))))
            whole = lambda ids: pa.array(index.keys(ids), pa.large_string())  # noqa: E731
            self._add("source_key", "text", whole)
        self._add("shard", "text", lambda ids: names.take(pa.array(index.shard[ids])))
        self._add(_LABEL, "number", lambda ids: _label(index.label[ids]))
        for name, compute in {
            "size": lambda ids: index.size[ids],
            "width": lambda ids: index.width[ids],
            "height": lambda ids: index.height[ids],
            "shortest": lambda ids: np.minimum(*(side[ids] for side in sides)),
            "longest": lambda ids: np.maximum(*(side[ids] for side in sides)),
            "pixels": lambda ids: np.multiply(*(side[ids].astype(np.int64) for side in sides)),
            "aspect": lambda ids: _aspect(*(side[ids] for side in sides)),
            "num_captions": lambda ids: np.diff(table.rows(ids)[1]),
        }.items():
            self._add(name, "number", _numeric(compute))
        self._add("text", "text", self._first_texts)
        for name, measure in {
            "caption_length": self._characters,
            "num_tokens": lambda rows: table.token_offsets[rows + 1] - table.token_offsets[rows],
        }.items():
            self._add(f"min_{name}", "number", self._over_texts(measure, np.minimum))
            self._add(f"max_{name}", "number", self._over_texts(measure, np.maximum))

    @cached_property
    def _texts(self) -> pa.Array:
        """[K] all texts, mapped."""
        return self._captions.text

    def _first_texts(self, ids: NDArray[np.int64]) -> pa.Array:
        rows, offsets = self._captions.rows(ids)
        first, there = _first_of_each(offsets)
        places = np.zeros(len(ids), dtype=np.int64)
        places[there] = rows[first]
        return self._texts.take(pa.array(places, mask=~there))

    def _characters(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        lengths = pc.call_function("utf8_length", [self._texts.take(pa.array(rows))])
        return lengths.to_numpy(zero_copy_only=False)

    def _over_texts(
        self, measure: Callable[[NDArray[np.int64]], NDArray[np.int64]], combine: np.ufunc
    ) -> Callable[[NDArray[np.int64]], Numbers]:
        """The smallest or largest measure of each sample's texts; missing where there is none."""

        def read(ids: NDArray[np.int64]) -> Numbers:
            rows, offsets = self._captions.rows(ids)
            first, there = _first_of_each(offsets)
            result = np.zeros(len(ids), dtype=np.int64)
            if len(first):
                result[there] = combine.reduceat(measure(rows), first)
            return numbers(result, there)

        return read

    def _add_optional(self) -> None:
        for name in self.index.column_names:
            array = self.index.column(name)
            self._add(name, kind_of(array.type), _stored(array))
        if self.kinds.get("url") == "text" and "domain" not in self.kinds:
            self._add("domain", "text", lambda ids: domains(self.read("url", ids)))

    def _add_joined(self, joined: JoinedTable) -> None:
        for name, kind in joined.kinds.items():
            self._add(f"joined_{name}" if name in self.kinds else name, kind, joined.reader(name))


class Chunk:
    """Some samples; a column that several conditions name is read once."""

    def __init__(self, columns: Columns, ids: NDArray[np.int64]) -> None:
        self.ids = ids
        """[C] rows of the index."""
        self._columns = columns
        self._read: dict[str, Values] = {}

    def read(self, name: str) -> Values:
        """A column of these samples."""
        if name not in self._read:
            self._read[name] = self._columns.read(name, self.ids)
        return self._read[name]


def domains(urls: pa.Array) -> pa.Array:
    """Host of each URL, lower case, without `www.` and without a dot at its end; null if none."""
    found = pc.call_function("extract_regex", [urls], pc.ExtractRegexOptions(_HOST))
    hosts = pc.call_function("struct_field", [found], pc.StructFieldOptions([0]))
    lower = pc.call_function("utf8_lower", [hosts])
    options = pc.ReplaceSubstringOptions(r"^www\.|\.$", "")
    return pc.call_function("replace_substring_regex", [lower], options)


def _numeric(compute: Callable[[NDArray[np.int64]], NDArray]) -> Callable[..., Numbers]:
    def read(ids: NDArray[np.int64]) -> Numbers:
        data = compute(ids)
        return numbers(data if data.dtype.kind == "f" else data.astype(np.int64))

    return read


def _stored(array: pa.Array) -> Callable[[NDArray[np.int64]], Values]:
    return lambda ids: from_arrow(array.take(pa.array(ids)))


def _label(label: NDArray[np.int32]) -> Numbers:
    return numbers(label.astype(np.int64), label >= 0)


def _aspect(width: NDArray[np.int32], height: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.maximum(width, height) / np.minimum(width, height)


def _first_of_each(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where the texts of each sample begin, of those samples that have any; and which these are."""
    there = np.diff(offsets) > 0
    return offsets[:-1][there], there
