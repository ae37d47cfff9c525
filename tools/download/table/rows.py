"""Rows of a table of any layout, cleaned and counted, in batches of bounded size.

`findings` says what is counted. The row id is the place of the row in the source, from 0,
header rows not counted and bad rows counted; in a TSV or JSONL it is the number of the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tools.download.table.findings import Tally
from tools.download.table.format import BOM, MAX_FIELD_BYTES, TableFormat, looks_like_url, open_text

pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers
_BLOCK_BYTES = 8 << 20
_BATCH_ROWS = 32_768
_URL_START = r"^\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//|^\s*data:"
_WHOLE_URL = r"^\s*https?://\S+\s*$"

Texts = pa.Array | Sequence[str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRows:
    """Rows as they stand in the source."""

    urls: Texts
    """[N] URLs; text that is not UTF-8 holds lone surrogates."""
    captions: Texts
    """[N] captions, likewise."""
    marks: dict[str, list[int]]
    """Places in this batch, from 0, by finding."""
    extras: tuple[pa.Array, ...] = ()
    """Further columns of a parquet table, [N] each."""

    def __len__(self) -> int:
        return len(self.urls)

    def head(self, limit: int) -> RawRows:
        """The first rows, `limit` at most."""
        if len(self) <= limit:
            return self
        return RawRows(
            urls=self.urls[:limit],
            captions=self.captions[:limit],
            marks={name: [n for n in places if n < limit] for name, places in self.marks.items()},
            extras=tuple(column[:limit] for column in self.extras),
        )


def read_rows(
    path: Path, table_format: TableFormat, *, extra_columns: Sequence[str] = ()
) -> Iterator[RawRows]:
    """Read a file in order.

    Args:
        path: a local file.
        table_format: how it is read.
        extra_columns: further columns of a parquet table to carry along.

    Raises:
        ValueError: it is damaged or cut short.
    """
    if table_format.layout == "parquet":
        yield from _read_parquet(path, table_format, extra_columns)
        return
    readers = {"tsv": _read_tsv, "csv": _read_csv, "jsonl": _read_jsonl}
    try:
        with open_text(path, gzipped=table_format.gzipped) as file:
            yield from readers[table_format.layout](file, table_format)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): fetch it again") from error
    except csv.Error as error:
        raise ValueError(
            f"{path}: {error}: a quote is not closed. Give --layout tsv if the table is separated "
            "by tabs and its quotes mean nothing, or repair it"
        ) from error


def clean_rows(
    raw: RawRows, first_row: int, tally: Tally, extra_names: Sequence[str] = ()
) -> pa.RecordBatch:
    """Repair, count and drop; what is left has an id, a URL and a caption.

    Args:
        raw: N rows of the source.
        first_row: id of the first of them.
        tally: counts to add to.
        extra_names: names of the further columns in the result.

    Returns:
        Up to N rows: row_id int64, url string, caption string, and the further columns.
    """
    row_ids = np.arange(first_row, first_row + len(raw), dtype=np.int64)
    tally.num_rows += len(raw)
    urls, encoded = _as_text(raw.urls, _percent_encoded)
    captions, replaced = _as_text(raw.captions, _with_replacements)
    urls, captions, swapped = _swap_back(urls, captions)
    trimmed = pc.utf8_trim_whitespace(urls)
    gone = np.zeros(len(raw), dtype=bool)
    reasons = {
        name: _mask(raw.marks.get(name, ()), len(raw)) for name in ("empty_line", "not_json")
    }
    reasons["missing_url"] = _is_blank(trimmed)
    reasons["missing_caption"] = _is_blank(pc.utf8_trim_whitespace(captions))
    for name, here in reasons.items():
        tally.note(tally.dropped, name, row_ids[here & ~gone])
        gone |= here
    repaired = {
        "bom": _mask(raw.marks.get("bom", ()), len(raw)),
        "crlf": _mask(raw.marks.get("crlf", ()), len(raw)),
        "extra_commas": _mask(raw.marks.get("extra_commas", ()), len(raw)) & ~gone,
        "undecodable_bytes": _mask(replaced, len(raw)) & ~gone,
        "url_bytes_encoded": _mask(encoded, len(raw)) & ~gone,
        "url_spaces": _true(pc.not_equal(trimmed, urls)) & ~gone,
        "swapped_columns": swapped & ~gone,
    }
    for name, here in repaired.items():
        tally.note(tally.repairs, name, row_ids[here])
    odd = {
        "extra_tabs": _mask(raw.marks.get("extra_tabs", ()), len(raw)) & ~gone,
        "line_break_in_caption": _true(pc.match_substring_regex(captions, "[\r\n]")) & ~gone,
    }
    for name, here in odd.items():
        tally.note(tally.oddities, name, row_ids[here])
    batch = pa.RecordBatch.from_arrays(
        [pa.array(row_ids), trimmed, captions, *raw.extras],
        names=["row_id", "url", "caption", *extra_names],
    )
    return batch.filter(pa.array(~gone)) if gone.any() else batch


def _as_text(values: Texts, repair: Callable[[str], str]) -> tuple[pa.Array, list[int]]:
    """[N] valid strings, and the places where bytes had to be repaired."""
    if not isinstance(values, Sequence):
        text = values.cast(pa.binary()) if pa.types.is_null(values.type) else values
        try:
            text = text.cast(pa.string())
            text.validate(full=True)
        except pa.ArrowInvalid:
            binary = text.cast(pa.binary()).to_pylist()
            values = [v if v is None else v.decode("utf-8", "surrogateescape") for v in binary]
        else:
            return text, []
    try:
        return pa.array(values, pa.string()), []
    except UnicodeEncodeError:
        pass
    places: list[int] = []
    fixed: list[str | None] = []
    for place, value in enumerate(values):
        if value is not None and not value.isascii() and _has_surrogates(value):
            places.append(place)
            value = repair(value)
        fixed.append(value)
    return pa.array(fixed, pa.string()), places


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _bytes_of(text: str) -> bytes:
    """The bytes that were read; lone surrogates written out in JSON are no characters either."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _with_replacements(text: str) -> str:
    return _bytes_of(text).decode("utf-8", "replace")


def _percent_encoded(text: str) -> str:
    """A server compares bytes: write those that are no text as %XX, as a browser does."""
    again = _bytes_of(text).decode("utf-8", "surrogateescape")
    return "".join(
        f"%{ord(character) - 0xDC00:02X}" if "\udc80" <= character <= "\udcff" else character
        for character in again
    )


def _swap_back(urls: pa.Array, captions: pa.Array) -> tuple[pa.Array, pa.Array, NDArray[np.bool_]]:
    """Exchange url and caption of the rows where only the caption is a URL."""
    no_url = ~_true(pc.match_substring_regex(urls, _URL_START))
    if not no_url.any():
        return urls, captions, no_url
    swapped = no_url & _true(pc.match_substring_regex(captions, _WHOLE_URL))
    mask = pa.array(swapped)
    return pc.if_else(mask, captions, urls), pc.if_else(mask, urls, captions), swapped


def _mask(places: Sequence[int], size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    mask[list(places)] = True
    return mask


def _true(values: pa.Array) -> NDArray[np.bool_]:
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def _is_blank(trimmed: pa.Array) -> NDArray[np.bool_]:
    return _true(pc.equal(pc.fill_null(trimmed, ""), ""))


def _line_batches(file: BinaryIO, marks: dict[str, list[int]]) -> Iterator[list[str]]:
    """Lines without their LF, a few megabytes at a time; a mark for the byte-order mark."""
    rest: list[bytes] = []
    start = True
    while block := file.read(_BLOCK_BYTES):
        if start and block.startswith(BOM):
            marks["bom"] = [0]
            block = block[len(BOM) :]
        start = False
        head, newline, tail = block.rpartition(b"\n")
        if not newline:
            rest.append(tail)
            continue
        data = b"".join([*rest, head])
        rest = [tail]
        yield data.decode("utf-8", "surrogateescape").split("\n")
    if last := b"".join(rest):
        yield [last.decode("utf-8", "surrogateescape")]


def _read_lines(
    file: BinaryIO, table_format: TableFormat
) -> Iterator[tuple[list[str], dict[str, list[int]]]]:
    """Data lines without CR LF, and marks for CRLF and empty lines."""
    marks: dict[str, list[int]] = {}
    header_ahead = table_format.header is not None
    for lines in _line_batches(file, marks):
        if header_ahead:
            place = next((n for n, line in enumerate(lines) if line.strip()), None)
            header_ahead = place is None
            lines = [] if place is None else lines[place + 1 :]
            if not lines:
                continue
        ends = [place for place, line in enumerate(lines) if line.endswith("\r")]
        for place in ends:
            lines[place] = lines[place][:-1]
        if ends:
            marks["crlf"] = ends
        if empty := [place for place, line in enumerate(lines) if not line]:
            marks["empty_line"] = empty
        yield lines, marks
        marks = {}


def _read_tsv(file: BinaryIO, table_format: TableFormat) -> Iterator[RawRows]:
    for lines, marks in _read_lines(file, table_format):
        rows = [line.split("\t") for line in lines]
        yield _two_of(rows, table_format, "\t", marks)


def _two_of(
    rows: list[list[str]], table_format: TableFormat, separator: str, marks: dict[str, list[int]]
) -> RawRows:
    """URL and caption of split rows; surplus separators belong to the caption."""
    width = len(table_format.columns)
    u, c = table_format.url_index, table_format.caption_index
    surplus = [place for place, row in enumerate(rows) if len(row) > width]
    if surplus:
        marks["extra_tabs" if separator == "\t" else "extra_commas"] = surplus
    for place in surplus:
        row = rows[place]
        end = c + len(row) - width + 1
        rows[place] = [*row[:c], separator.join(row[c:end]), *row[end:]]
    short = [place for place, row in enumerate(rows) if len(row) < width]
    for place in short:
        rows[place] = _widened(rows[place], width, u, c)
    return RawRows(urls=[row[u] for row in rows], captions=[row[c] for row in rows], marks=marks)


def _widened(row: list[str], width: int, u: int, c: int) -> list[str]:
    """A row with too few fields; a lone field is put where it belongs."""
    wide = row + [""] * (width - len(row))
    if len(row) == 1:
        wide[0] = ""
        wide[u if looks_like_url(row[0]) else c] = row[0]
    return wide


def _read_csv(file: BinaryIO, table_format: TableFormat) -> Iterator[RawRows]:
    marks: dict[str, list[int]] = {}
    head = file.read(len(BOM))
    if head == BOM:
        marks["bom"] = [0]
    else:
        file.seek(0)
    csv.field_size_limit(MAX_FIELD_BYTES)
    with io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        if table_format.header is not None:
            next((row for row in reader if any(row)), None)
        batch: list[list[str]] = []
        for row in reader:
            batch.append(row)
            if len(batch) == _BATCH_ROWS:
                yield _csv_batch(batch, table_format, marks)
                batch, marks = [], {}
        if batch:
            yield _csv_batch(batch, table_format, marks)


def _csv_batch(
    rows: list[list[str]], table_format: TableFormat, marks: dict[str, list[int]]
) -> RawRows:
    if empty := [place for place, row in enumerate(rows) if not row]:
        marks["empty_line"] = empty
    for place in empty:
        rows[place] = [""]
    return _two_of(rows, table_format, ",", marks)


def _read_jsonl(file: BinaryIO, table_format: TableFormat) -> Iterator[RawRows]:
    for lines, marks in _read_lines(file, table_format):
        urls: list[str | None] = []
        captions: list[str | None] = []
        bad: list[int] = []
        for place, line in enumerate(lines):
            item = _json_object(line)
            if item is None:
                bad.append(place)
                item = {}
            url, caption = item.get(table_format.url_column), item.get(table_format.caption_column)
            urls.append(url if isinstance(url, str) else None)
            captions.append(caption if isinstance(caption, str) else None)
        yield RawRows(urls=urls, captions=captions, marks={**marks, "not_json": bad})


def _json_object(line: str) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_parquet(
    path: Path, table_format: TableFormat, extra_columns: Sequence[str]
) -> Iterator[RawRows]:
    wanted = [table_format.url_column, table_format.caption_column, *extra_columns]
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                columns = [_plain(batch.column(name)) for name in wanted]
                yield RawRows(
                    urls=columns[0], captions=columns[1], marks={}, extras=tuple(columns[2:])
                )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read to its end ({error}): fetch it again") from error


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
