"""Rows of a table of any layout, repaired and counted, in batches of bounded size.

The row id is the place of the row in the source, from 0: header rows are not counted, bad rows are.
What is found is counted under these names, each with the ids of its first rows.

repaired   bom, crlf, undecodable_bytes (U+FFFD in the caption), url_bytes_encoded (%XX),
           url_spaces (around it), swapped_columns, extra_separators (the surplus of a CSV row was
           joined to the caption), bad_quote (a quote that is not closed: the line was read without
           quoting), several_captions (a list in one cell: the first was taken)
kept       extra_tabs (they belong to the caption), line_break_in_caption
dropped    empty_line, not_json, unreadable, missing_url, missing_caption, text_too_long (above
           64 KB), duplicate_url (with the same caption), duplicate_url_other_caption,
           over_host_limit
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa

from tessera.pipeline.index.arrow_tables import ParquetTable
from tessera.pipeline.index.cells import listed_texts
from tessera.pipeline.index.foreign_tables import BadRow, Problem
from tessera.tools.download.table.formats import (
    BOM,
    UNPACKING,
    TableFormat,
    csv_records,
    json_object,
    looks_like_url,
)

BASE_SCHEMA = pa.schema([("row_id", pa.int64()), ("url", pa.string()), ("caption", pa.string())])
MAX_TEXT_BYTES = 65_536
"""Length of a URL or caption; longer ones are left out, so that no batch of rows grows large."""
_BATCH_ROWS, _BATCH_CHARACTERS = 32_768, 16 << 20
_MAX_LINE = 1 << 20  # characters; what a longer line has more is passed over
_EXAMPLES = 3
_WHOLE_URL = re.compile(r"\s*https?://\S+\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")
DROPPED = frozenset({"empty_line", "not_json", "unreadable", "missing_url", "missing_caption"})
DROPPED |= {"text_too_long"}
_KEPT = frozenset({"extra_tabs", "line_break_in_caption"})


class Tally:
    """What was found in the rows; see the module's text for the names."""

    def __init__(self) -> None:
        self.num_rows = 0  # rows of the source, bad ones too
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        """Rows by finding, under `repairs`, `oddities` and `dropped`."""
        self.examples: dict[str, list[int]] = {}  # row ids of the first of each finding

    def note(self, name: str, row_ids: Sequence[int], num: int = 1, kind: str = "repairs") -> None:
        """Count `num` rows under a name, of which `row_ids` are the first."""
        kind = "dropped" if name in DROPPED else "oddities" if name in _KEPT else kind
        self.counts[kind][name] += num
        known = self.examples.setdefault(name, [])
        known += row_ids[: _EXAMPLES - len(known)]


class Raw(NamedTuple):
    """A row as it stands in the source; a byte that is not UTF-8 is a lone surrogate."""

    url: str | None
    caption: str | None
    marks: Sequence[str] = ()
    extras: Sequence[Any] = ()


def read_batches(
    path: Path,
    table: TableFormat,
    tally: Tally,
    extras: Mapping[str, pa.Field],
    limit: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Read a file in order; rows get the ids from `tally.num_rows` on.

    Yields:
        row_id int64, url string, caption string, and the further columns.

    Raises:
        ValueError: it is damaged or cut short.
    """
    schema = pa.schema([*BASE_SCHEMA, *extras.values()])
    rows: list[tuple[Any, ...]] = []
    size = 0
    parquet = table.layout == "parquet"
    try:
        for raw in _from_parquet(path, table, extras) if parquet else _text(path, table):
            if tally.num_rows == limit:
                break
            if (row := _clean(raw, tally.num_rows, tally)) is not None:
                rows.append((tally.num_rows, *row, *raw.extras))
                size += sum(len(each) for each in rows[-1] if isinstance(each, str))
            tally.num_rows += 1
            if len(rows) == _BATCH_ROWS or size > _BATCH_CHARACTERS:
                yield _batch(rows, schema)
                rows, size = [], 0
    except UNPACKING as error:
        raise ValueError(f"{path} cannot be read to its end ({error}): fetch it again") from error
    if rows:
        yield _batch(rows, schema)


def _batch(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _clean(raw: Raw, row_id: int, tally: Tally) -> tuple[str, str] | None:
    """URL and caption of a row, repaired; None where it is left out."""
    url, caption, marks = raw.url or "", raw.caption or "", list(raw.marks)
    if caption[-1:] == "]" and (several := listed_texts(caption)):
        caption = several[0]
        marks.append("several_captions")
    if not looks_like_url(url) and _WHOLE_URL.fullmatch(caption):
        url, caption = caption, url
        marks.append("swapped_columns")
    if not url.isascii() and _SURROGATE.search(url):
        # A server compares bytes: those that are no text become %XX, as in a browser.
        url = "".join(
            f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c
            for c in _bytes_of(url).decode("utf-8", "surrogateescape")
        )
        marks.append("url_bytes_encoded")
    if not caption.isascii() and _SURROGATE.search(caption):
        caption = _bytes_of(caption).decode("utf-8", "replace")
        marks.append("undecodable_bytes")
    if (stripped := url.strip()) != url:
        url = stripped
        marks.append("url_spaces")
    if "\n" in caption or "\r" in caption:
        marks.append("line_break_in_caption")
    why = next((mark for mark in marks if mark in DROPPED), None)
    if why is None and max(len(url.encode()), len(caption.encode())) > MAX_TEXT_BYTES:
        why = "text_too_long"
    if why is None and not (url and caption.strip()):
        why = "missing_caption" if url else "missing_url"
    if why is not None:
        tally.note(why, [row_id])
        marks = [mark for mark in marks if mark in ("bom", "crlf")]
    for mark in marks:
        tally.note(mark, [row_id])
    return (url, caption) if why is None else None


def _bytes_of(text: str) -> bytes:
    """The bytes that were read; lone surrogates written out in JSON are no characters either."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _text(path: Path, table: TableFormat) -> Iterator[Raw]:
    found: list[str] = []
    with table.open(path) as file:
        lines = _lines(file, table, found)
        header = table.header
        for raw in _json(lines, table) if table.layout == "jsonl" else _split(lines, table):
            if header:
                header = "empty_line" in raw.marks
                found[:] = [mark for mark in found if mark == "bom"]  # the first row tells of it
                continue
            yield raw._replace(marks=(*found, *raw.marks)) if found else raw
            found.clear()


def _lines(file: TextIO, table: TableFormat, found: list[str]) -> Iterator[str]:
    """Lines without their ends; `found` gets the marks of the lines since it was cleared."""
    start, line_end, quoted = BOM, table.line_end, table.layout == "csv"
    while line := file.readline(_MAX_LINE):
        if start and line.startswith(start):
            found.append("bom")
            line = line.removeprefix(start)
        start = ""
        rest = line
        while len(rest) >= _MAX_LINE - 1 and not rest.endswith(line_end):
            rest = file.readline(_MAX_LINE)
            if "text_too_long" not in found:
                found.append("text_too_long")
        line = line.removesuffix(line_end)
        if line.endswith("\r") and not quoted:  # in a CSV that is usual, and kept inside quotes
            found.append("crlf")
            line = line.removesuffix("\r")
        yield line


def _split(lines: Iterator[str], table: TableFormat) -> Iterator[Raw]:
    width, separator = len(table.columns), table.separator
    u, c = table.columns.index(table.url_column), table.columns.index(table.caption_column)
    quoted = table.layout == "csv"
    records = csv_records(lines, separator) if quoted else ((x.split(separator), ()) for x in lines)
    for row, marks in records:
        if len(row) > width:  # surplus separators belong to the caption
            end = c + len(row) - width + 1
            row = [*row[:c], separator.join(row[c:end]), *row[end:]]
            marks = (*marks, "extra_separators" if quoted else "extra_tabs")
        elif len(row) < width:
            if row in ([], [""]):
                marks = (*marks, "empty_line")
            alone = row[0] if len(row) == 1 else ""
            row = row + [""] * (width - len(row))
            if alone:  # a lone field is put where it belongs
                row[0] = ""
                row[u if looks_like_url(alone) else c] = alone
        yield Raw(row[u], row[c], marks)


def _json(lines: Iterator[str], table: TableFormat) -> Iterator[Raw]:
    for line in lines:
        item = json_object(line)
        if item is None:
            yield Raw(None, None, ("not_json" if line else "empty_line",))
        else:
            yield Raw(
                _text_of(item.get(table.url_column)), _text_of(item.get(table.caption_column))
            )


def _from_parquet(path: Path, table: TableFormat, extras: Mapping[str, pa.Field]) -> Iterator[Raw]:
    for row in ParquetTable((path,)).rows([table.url_column, table.caption_column, *extras]):
        if isinstance(row, BadRow):
            long = row.problem == Problem.TOO_LONG
            yield Raw(None, None, ("text_too_long" if long else "unreadable",))
        elif any(isinstance(each, bytes) and len(each) > MAX_TEXT_BYTES for each in row.values):
            yield Raw(None, None, ("text_too_long",))
        else:
            url, caption, *more = row.values
            yield Raw(_text_of(url), _text_of(caption), (), more)


def _text_of(value: object) -> str | None:
    """A text, of bytes too; a list of texts as JSON; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    value = json.dumps(value) if isinstance(value, list) else value
    return value if isinstance(value, str) else None
