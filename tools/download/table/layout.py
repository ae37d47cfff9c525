"""What kind of table is this: encoding, separator, columns, whether its first row is a header.

Everything is decided from the first megabyte and shown before anything is downloaded.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tessera.tools.download.table.records import csv_records, json_object, looks_like_url

LAYOUTS = ("tsv", "csv", "jsonl", "parquet")
SUFFIXES = (".parquet", ".tsv", ".csv", ".txt", ".jsonl", ".ndjson", ".json")
MAX_TEXT_BYTES = 65_536
"""Length of a URL or caption; longer ones are left out, so that no batch of rows grows large."""
BOM = "\ufeff"
_URL_NAMES = ["url", "urls", "image_url", "img_url", "image_link", "link", "href", "image", "src"]
_CAPTION_NAMES = ["caption", "text", "captions", "texts", "title", "alt", "alt_text", "description"]
_CAPTION_NAMES += ["top_caption"]
_SAMPLE_BYTES = 1 << 20
_SAMPLE_ROWS = 200
_SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe"}
_WHOLE_URL = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//\S+\s*")
# Letters of Western Europe but y with a diaeresis (FF), which is rare, and common signs.
_WESTERN = frozenset(bytes([*range(0xC0, 0xFF), *b"\x80\x85\x91\x92\x93\x94\x96\x97\x99"]))
_WESTERN |= {0xA0, 0xA1, 0xA3, 0xA7, 0xA9, 0xAB, 0xAE, 0xB0, 0xB4, 0xB7, 0xBB, 0xBD, 0xBF}
_NOT_TABLES = {
    b"PK\x03\x04": "a zip file: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first (zstd -d)",
    b"BZh": "packed with bzip2: unpack it first (bunzip2)",
    b"\xfd7zXZ\x00": "packed with xz: unpack it first (unxz)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFormat:
    """How the rows of a table are read."""

    layout: str  # `tsv` (split at a separator, no quoting), `csv` (quoted), `jsonl` or `parquet`
    columns: tuple[str, ...]  # All columns; `0`, `1` … where the table has no names
    url_column: str  # Which of them is the URL
    caption_column: str  # Which of them is the caption
    gzipped: bool = False  # The text is packed with gzip
    encoding: str = "utf-8"  # Of the text
    separator: str = ""  # Between the columns of a tsv or csv
    line_end: str = "\n"  # Character that ends a line
    header: bool = False  # The first row names the columns
    notes: tuple[str, ...] = ()  # What a person should know about the choice

    @property
    def is_parquet(self) -> bool:
        """Whether it is no text."""
        return self.layout == "parquet"

    def describe(self) -> list[str]:
        """Lines to print."""
        parts = [self.layout]
        if self.separator:
            parts.append(f"separated by {_SEPARATORS.get(self.separator, repr(self.separator))}")
        parts += [self.encoding] if self.encoding != "utf-8" else []
        parts += ["gzip"] if self.gzipped else []
        if self.layout in ("tsv", "csv"):
            parts.append("header row" if self.header else "no header row")
        named = f"url = column {self.url_column}, caption = column {self.caption_column}"
        return [f"{', '.join(parts)}; {named}", *self.notes]

    def open(self, path: Path) -> TextIO:
        """Open the text of a table; a byte that is not UTF-8 becomes a lone surrogate."""
        file: Any = gzip.open(path, "rb") if self.gzipped else path.open("rb")  # noqa: SIM115
        errors = "surrogateescape" if self.encoding == "utf-8" else "replace"
        return io.TextIOWrapper(file, encoding=self.encoding, errors=errors, newline=self.line_end)


def separator_named(text: str | None) -> str | None:
    """The character that `--delimiter` means: itself, or `tab`, `comma`, `semicolon`, `pipe`.

    Raises:
        ValueError: it is no single character.
    """
    names = {name: character for character, name in _SEPARATORS.items()} | {"\\t": "\t"}
    found = names.get(text, text) if text else None
    if found is not None and (len(found) != 1 or found in '"\r\n'):
        raise ValueError(f"--delimiter must be one character or {', '.join(names)}, got {text!r}")
    return found


def detect_format(
    path: Path,
    *,
    layout: str | None = None,
    url_column: str | None = None,
    caption_column: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> TableFormat:
    """Find out how a table is to be read, from its first rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, or its columns are not clear; the message says what to give.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    with path.open("rb") as file:
        magic = file.read(8)
    given = (url_column, caption_column)
    if magic.startswith(b"PAR1") or layout == "parquet":
        columns, rows = _parquet_rows(path)
        url, caption, notes = _choose(path, columns, rows, given, named=True)
        return TableFormat(
            layout="parquet", columns=columns, url_column=url, caption_column=caption, notes=notes
        )
    gzipped = magic.startswith(b"\x1f\x8b")
    data = _first_bytes(path, gzipped=gzipped)
    encoding, notes = (encoding, ()) if encoding else _encoding_of(data)
    try:
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")
    except LookupError:
        raise ValueError(f"--encoding {encoding} is not known to Python") from None
    line_end = "\n" if "\n" in text or "\r" not in text else "\r"
    lines = [line.removesuffix("\r") for line in text.removeprefix(BOM).split(line_end)]
    if len(data) == _SAMPLE_BYTES:
        if not lines[1:]:
            raise ValueError(f"{path} has no line end in its first megabyte: it is no table")
        lines.pop()
    lines = [line for line in lines if line.strip()][:_SAMPLE_ROWS]
    separator, header = "", False
    if layout == "jsonl" or (layout is None and lines[0].lstrip().startswith(("{", "["))):
        layout = "jsonl"
        columns, rows = _json_rows(path, lines)
    else:
        layout, separator = _text_layout(path, lines, layout, separator_named(delimiter))
        rows = split_lines(lines, separator, quoted=layout == "csv")
        header = _is_header(rows[0], given)
        columns = tuple(name.strip() for name in rows[0]) if header else _numbered(path, rows)
        rows = rows[1:] if header else rows
        if not rows:
            raise ValueError(f"{path} holds a header row and nothing else")
    named = header or layout == "jsonl"
    url, caption, more = _choose(path, columns, rows, given, named=named)
    return TableFormat(
        layout=layout,
        columns=columns,
        url_column=url,
        caption_column=caption,
        gzipped=gzipped,
        encoding=encoding,
        separator=separator,
        line_end=line_end,
        header=header,
        notes=(*notes, *more),
    )


def split_lines(lines: Sequence[str], separator: str, *, quoted: bool) -> list[list[str]]:
    """The fields of lines; what a quote that is not closed would take is left as it stands."""
    if not quoted:
        return [line.split(separator) for line in lines]
    return [row for row, _ in csv_records(iter(lines), separator)]


def _first_bytes(path: Path, *, gzipped: bool) -> bytes:
    try:
        with gzip.open(path, "rb") if gzipped else path.open("rb") as file:
            data = file.read(_SAMPLE_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): fetch it again") from error
    if not data.strip():
        raise ValueError(f"{path} is empty")
    for magic, meaning in _NOT_TABLES.items():
        if data.startswith(magic):
            raise ValueError(f"{path} is {meaning}")
    if re.match(rb"\s*<(!doctype html|html|\?xml)", data, re.IGNORECASE):
        raise ValueError(f"{path} is a web page, not a table: check the link it came from")
    return data


def _encoding_of(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Encoding by byte-order mark, by zero bytes, or by what most lines beyond ASCII are."""
    found, how = "utf-8", ""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found, how = "utf-16", "by its byte-order mark"
    elif data.count(b"\0") > len(data) // 4:
        found = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
        how = "as every second byte is zero"
    else:
        beyond = [line for line in data.split(b"\n") if not line.isascii()]
        western = sum(_is_western(line) for line in beyond)
        if western > 1 and western * 2 > len(beyond):
            found, how = "cp1252", "as most of its lines beyond ASCII are no UTF-8"
    return found, (f"read as {found}, {how}: --encoding overrules it",) if how else ()


def _is_western(line: bytes) -> bool:
    """Whether a line is no UTF-8 and makes sense in cp1252."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return all(byte < 0x80 or byte in _WESTERN for byte in line)
    return False


def _text_layout(
    path: Path, lines: list[str], layout: str | None, separator: str | None
) -> tuple[str, str]:
    """Whether there is quoting, and what separates the columns: what gives most rows a URL."""
    if layout == "tsv" or separator == "\t":
        return layout or "tsv", separator or "\t"
    if separator:
        return "csv", separator
    scores = {}
    for each in _SEPARATORS if layout is None else [s for s in _SEPARATORS if s != "\t"]:
        rows = split_lines(lines, each, quoted=each != "\t")
        header = _is_header(rows[0], (None, None))
        body = rows[1:] if header else rows
        width = Counter(map(len, body)).most_common(1)[0][0] if body else 0
        urls = max((_share(body, place, _WHOLE_URL.fullmatch) for place in range(width)), default=0)
        fitting = sum(len(row) == width for row in body) / max(1, len(body))
        scores[each] = (width > 1, urls > 0.5, header and len(rows[0]) > 1, urls * fitting)
    best = max(scores, key=lambda each: scores[each])
    if not scores[best][0]:
        raise ValueError(
            f"{path} has no tabs, commas, semicolons or pipes between its columns; a table needs a "
            "url and a caption in each row: give --layout or --delimiter if it is one"
        )
    return ("tsv" if best == "\t" else "csv"), best


def _is_header(row: list[str], given: tuple[str | None, str | None]) -> bool:
    names = [name.strip() for name in row]
    known = {*_URL_NAMES, *_CAPTION_NAMES, *(name.lower() for name in given if name)}
    found = any(name.lower() in known and not name.isdigit() for name in names)
    return found and not any(looks_like_url(name) for name in names)


def _numbered(path: Path, rows: list[list[str]]) -> tuple[str, ...]:
    """Names for the columns of a table without a header."""
    ((width, _),) = Counter(len(row) for row in rows).most_common(1)
    if width < 2:
        raise ValueError(
            f"{path} has one column where it needs a url and a caption: see --delimiter for how "
            "its columns are separated"
        )
    return tuple(str(number) for number in range(width))


def _json_rows(path: Path, lines: list[str]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Keys that occur, and the values of the first rows as text."""
    objects = [item for item in map(json_object, lines) if item is not None]
    if not objects:
        advice = "give --layout"
        if lines[0].lstrip().startswith("["):
            advice = "write one object a line (jq -c '.[]')"
        raise ValueError(f"{path} holds no JSON object in its first lines: {advice}")
    columns = tuple(dict.fromkeys(key for item in objects for key in item))
    return columns, [[_shown(item.get(key)) for key in columns] for item in objects]


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = ("string", "large_string", "string_view", "binary", "large_binary", "null")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in checks)


def _parquet_rows(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns of text, and the values of the first rows."""
    try:
        with pq.ParquetFile(path) as file:
            check_parquet(path)
            schema = file.schema_arrow
            twice = {name for name, count in Counter(schema.names).items() if count > 1}
            names = [f.name for f in schema if _is_text(f.type) and f.name not in twice]
            if len(names) < 2:
                raise ValueError(f"{path} has no two columns of text, for a url and a caption")
            file = pq.ParquetFile(path, read_dictionary=names)
            batch = next(file.iter_batches(batch_size=_SAMPLE_ROWS, columns=names), None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole parquet file ({error}): fetch it again") from error
    if batch is None or not len(batch):
        raise ValueError(f"{path} is empty")
    columns = [_first_texts(batch.column(name)) for name in names]
    return tuple(names), [list(row) for row in zip(*columns, strict=True)]


def check_parquet(path: Path) -> None:
    """Refuse a file of a few kilobytes that unpacks to gigabytes.

    DuckDB reads the metadata: pyarrow's `RowGroupMetaData.column` ends the process on damaged ones.

    Raises:
        ValueError: a column unpacks to more than 256 MB and a thousand times its length.
    """
    try:
        columns = duckdb.execute(
            "SELECT path_in_schema, total_uncompressed_size, total_compressed_size "
            "FROM parquet_metadata(?)",
            [str(path)],
        ).fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{path} is no whole parquet file ({error}): fetch it again") from None
    for name, size, stored in columns:
        if size > max(1 << 28, 1000 * stored):
            raise ValueError(
                f"{path}: column {name} unpacks from {stored:,} bytes to {size:,}: it is refused "
                "as a bomb"
            )


def _first_texts(column: pa.Array) -> list[str]:
    """Texts of a column of a dictionary, the beginnings of long ones."""
    if not pa.types.is_dictionary(column.type):
        return [""] * len(column)
    views = [value.as_buffer() if value.is_valid else b"" for value in column.dictionary]
    texts = [bytes(memoryview(view)[:1000]).decode("utf-8", "replace") for view in views]
    places = column.indices.to_pylist()
    return [texts[place] if place is not None and place < len(texts) else "" for place in places]


def _shown(value: object) -> str:
    return value if isinstance(value, str) else ("" if value is None else str(value))


def _choose(
    path: Path,
    columns: Sequence[str],
    rows: list[list[str]],
    given: tuple[str | None, str | None],
    *,
    named: bool,
) -> tuple[str, str, tuple[str, ...]]:
    """The URL's and the caption's column, and what to say about the choice."""
    shares = [_share(rows, place, looks_like_url) for place in range(len(columns))]
    url = _given(path, columns, given[0], "--url-column")
    caption = _given(path, columns, given[1], "--caption-column")
    notes: list[str] = []
    if named:
        url = url or _first_named(columns, _URL_NAMES)
        caption = caption or _first_named(columns, _CAPTION_NAMES)
        swapped = url and caption and given == (None, None)
        if swapped and shares[columns.index(caption)] > 0.5 > shares[columns.index(url)]:
            url, caption = caption, url
            notes.append("the names of the url and caption columns are swapped: put right")
    if url is None:
        best = [place for place, share in enumerate(shares) if share == max(shares)]
        if max(shares) < 0.5:
            raise ValueError(f"{path}: no column holds URLs in the first rows; give --url-column")
        if len(best) > 1:
            names = ", ".join(columns[place] for place in best)
            raise ValueError(f"{path}: which of {names} is the image's url? give --url-column")
        url = columns[best[0]]
    others = [name for name in columns if name != url]
    if caption is None and len(others) != 1:
        names = ", ".join(others)
        raise ValueError(f"{path}: which of {names} is the caption? give --caption-column")
    caption = caption or others[0]
    if url == caption:
        raise ValueError(f"{path}: url and caption are both column {url}")
    if shares[columns.index(url)] < 0.5:
        notes.append(f"column {url} holds few URLs in the first rows: is it the right one?")
    return url, caption, tuple(notes)


def _share(rows: list[list[str]], place: int, is_url: object) -> float:
    values = [row[place] for row in rows if len(row) > place and row[place]]
    return sum(bool(is_url(v)) for v in values) / len(values) if values else 0.0  # type: ignore[operator]


def _given(path: Path, columns: Sequence[str], name: str | None, option: str) -> str | None:
    if name is None or name in columns:
        return name
    if name.isdigit() and int(name) < len(columns):
        return columns[int(name)]
    raise ValueError(f"{path} has no column {name}: {option} must be of {', '.join(columns)}")


def _first_named(columns: Sequence[str], wanted: list[str]) -> str | None:
    lower = [name.lower() for name in columns]
    return next((columns[lower.index(name)] for name in wanted if name in lower), None)
