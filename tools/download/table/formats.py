"""What kind of table is this: encoding, separator, columns, whether its first row is a header.

Everything is decided from the first megabyte and shown before anything is downloaded.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from tessera.pipeline.index.arrow_tables import ParquetTable
from tessera.pipeline.index.foreign_tables import Row

BOM = "\ufeff"
_URL_NAMES = ["url", "urls", "image_url", "img_url", "image_link", "link", "href", "image", "src"]
_CAPTION_NAMES = [
    "caption",
    "text",
    "captions",
    "texts",
    "title",
    "alt",
    "alt_text",
    "description",
    "top_caption",
]
_SAMPLE_BYTES, _SAMPLE_ROWS = 1 << 20, 200
_MAX_RECORD_LINES = 200
_SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe"}
_URL = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//\S")
_WHOLE_URL = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//\S+\s*")
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ\0": lzma}
_NOT_TABLES = {
    b"PK\x03\x04": "a zip file: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first (zstd -d)",
}
UNPACKING = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a packed file that is damaged may raise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFormat:
    """How the rows of a table are read."""

    layout: str  # `tsv` (split at a separator, no quoting), `csv` (quoted), `jsonl` or `parquet`
    columns: tuple[str, ...]  # all of them; `0`, `1` … where the table has no names
    url_column: str = ""
    caption_column: str = ""
    packed: Any = None  # module that unpacks the text
    encoding: str = "utf-8"
    separator: str = ""  # between the columns of a tsv or csv
    line_end: str = "\n"
    header: bool = False  # the first row names the columns
    notes: tuple[str, ...] = ()  # what a person should know about the choice

    def describe(self) -> list[str]:
        """Lines to print."""
        parts = [self.layout]
        if self.separator:
            parts.append(f"separated by {_SEPARATORS.get(self.separator, repr(self.separator))}")
            parts.append("header row" if self.header else "no header row")
        parts += [self.encoding] if self.encoding != "utf-8" else []
        parts += [self.packed.__name__] if self.packed else []
        named = f"url = column {self.url_column}, caption = column {self.caption_column}"
        return [f"{', '.join(parts)}; {named}", *self.notes]

    def open(self, path: Path) -> TextIO:
        """Open the text of a table; a byte that is not UTF-8 becomes a lone surrogate."""
        file = (self.packed or io).open(path, "rb")
        errors = "surrogateescape" if self.encoding == "utf-8" else "replace"
        return io.TextIOWrapper(file, encoding=self.encoding, errors=errors, newline=self.line_end)


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
        columns, rows = _parquet_sample(path)
        return _chosen(path, TableFormat(layout="parquet", columns=columns), rows, given)
    packed = next((how for start, how in _PACKED.items() if magic.startswith(start)), None)
    data = _first_bytes(path, packed)
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
        columns, rows = _json_sample(path, lines)
    else:
        layout, separator = _text_layout(path, lines, layout, _separator_named(delimiter))
        rows = _fields(lines, separator, quoted=layout == "csv")
        header = _is_header(rows[0], given)
        ((width, _),) = Counter(len(row) for row in rows).most_common(1)
        columns = [name.strip() for name in rows[0]] if header else list(map(str, range(width)))
        rows = rows[1:] if header else rows
    found = TableFormat(
        layout=layout,
        columns=tuple(columns),
        packed=packed,
        encoding=encoding,
        separator=separator,
        line_end=line_end,
        header=header,
        notes=notes,
    )
    return _chosen(path, found, rows, given)


def looks_like_url(text: str) -> bool:
    """Whether it begins as a URL with a scheme, or with `//`."""
    return _URL.match(text) is not None


def csv_records(
    lines: Iterator[str], separator: str
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Records of a CSV; a bad quote costs its own line and no other.

    Yields:
        Fields, and the mark `bad_quote` where a line was taken as it stands.
    """
    kept: list[str] = []  # lines that a quote asked for and that turned out not to belong to it
    while (line := kept.pop() if kept else next(lines, None)) is not None:
        taken = [line]

        def more(taken: list[str] = taken) -> Iterator[str]:
            yield taken[0]
            while len(taken) < _MAX_RECORD_LINES:
                following = kept.pop() if kept else next(lines, None)
                if following is None:
                    return
                taken.append(following)
                yield f"\n{following}"

        row = None
        if '"' in line:
            try:
                row = next(csv.reader(more(), delimiter=separator, strict=True))
            except (csv.Error, StopIteration):
                row = None
            # A line that begins with a URL is a row of its own, not the rest of a caption.
            if row is None or any(looks_like_url(each.lstrip('"')) for each in taken[1:]):
                kept.extend(reversed(taken[1:]))
                yield line.removesuffix("\r").split(separator), ("bad_quote",)
                continue
        yield row or line.removesuffix("\r").split(separator), ()


def json_object(line: str) -> dict[str, Any] | None:
    """The object that a line holds, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fields(lines: Sequence[str], separator: str, *, quoted: bool) -> list[list[str]]:
    if not quoted:
        return [line.split(separator) for line in lines]
    return [row for row, _ in csv_records(iter(lines), separator)]


def _separator_named(text: str | None) -> str | None:
    """The character that `--delimiter` means: itself, or one of the names."""
    names = {name: character for character, name in _SEPARATORS.items()} | {"\\t": "\t"}
    found = names.get(text, text) if text else None
    if found is not None and (len(found) != 1 or found in '"\r\n'):
        raise ValueError(f"--delimiter must be one character or {', '.join(names)}, got {text!r}")
    return found


def _first_bytes(path: Path, packed: Any) -> bytes:
    try:
        with (packed or io).open(path, "rb") as file:
            data = file.read(_SAMPLE_BYTES)
    except UNPACKING as error:
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
    beyond = [line for line in data.split(b"\n") if not line.isascii()]
    foreign = sum("\ufffd" in line.decode("utf-8", "replace") for line in beyond)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found, how = "utf-16", "by its byte-order mark"
    elif data.count(b"\0") > len(data) // 4:
        found = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
        how = "as every second byte is zero"
    elif foreign > 1 and foreign * 2 > len(beyond):
        found, how = "cp1252", "as most of its lines beyond ASCII are no UTF-8"
    else:
        return "utf-8", ()
    return found, (f"read as {found}, {how}: --encoding overrules it",)


def _text_layout(
    path: Path, lines: list[str], layout: str | None, separator: str | None
) -> tuple[str, str]:
    """Whether there is quoting, and what separates the columns: what gives most rows a URL."""
    if layout == "tsv" or separator:
        separator = separator or "\t"
        return layout or ("tsv" if separator == "\t" else "csv"), separator

    def score(separator: str) -> tuple[bool, bool, bool, float]:
        rows = _fields(lines, separator, quoted=separator != "\t")
        header = _is_header(rows[0], (None, None))
        body = rows[1:] if header else rows
        width = Counter(map(len, body)).most_common(1)[0][0] if body else 0
        urls = max((_share(body, place, _WHOLE_URL.fullmatch) for place in range(width)), default=0)
        fitting = sum(len(row) == width for row in body) / max(1, len(body))
        return width > 1, urls > 0.5, header and len(rows[0]) > 1, urls * fitting

    best = max((s for s in _SEPARATORS if s != "\t" or layout is None), key=score)
    if not score(best)[0]:
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


def _json_sample(path: Path, lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """Keys that occur, and the values of the first rows as text."""
    objects = [item for item in map(json_object, lines) if item is not None]
    if not objects:
        advice = "give --layout"
        if lines[0].lstrip().startswith("["):
            advice = "write one object a line (jq -c '.[]')"
        raise ValueError(f"{path} holds no JSON object in its first lines: {advice}")
    columns = list(dict.fromkeys(key for item in objects for key in item))
    return columns, [[_shown(item.get(key)) for key in columns] for item in objects]


def _parquet_sample(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns of text, and the values of the first rows as text."""
    table = ParquetTable((path,))
    once = Counter(table.names)
    names = [field.name for field in table.schema if is_text(field.type) and once[field.name] == 1]
    rows = list(islice(table.rows(names), _SAMPLE_ROWS)) if names else [None]
    if not rows:
        raise ValueError(f"{path} is empty")
    good = [row.values for row in rows if isinstance(row, Row)] or [[""] * len(names)]
    return tuple(names), [[_shown(value)[:1000] for value in values] for values in good]


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, or bytes that may be text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = ("string", "large_string", "string_view", "binary", "large_binary", "null")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in checks)


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ("" if value is None else str(value))


def _chosen(
    path: Path, found: TableFormat, rows: list[list[str]], given: tuple[str | None, str | None]
) -> TableFormat:
    """The format with the columns of URL and caption: those given, or by name or content."""
    columns = found.columns
    if not rows:
        raise ValueError(f"{path} holds a header row and nothing else")
    if len(columns) < 2:
        raise ValueError(
            f"{path} has one column where it needs a url and a caption: see --delimiter for how "
            "its columns are separated"
        )
    shares = [_share(rows, place, looks_like_url) for place in range(len(columns))]
    named = found.header or not found.separator
    url = _column(path, columns, given[0], "--url-column", _URL_NAMES if named else ())
    caption = _column(path, columns, given[1], "--caption-column", _CAPTION_NAMES if named else ())
    if url is None:
        best = [name for name, share in zip(columns, shares, strict=True) if share == max(shares)]
        if max(shares) < 0.5:
            raise ValueError(f"{path}: no column holds URLs in the first rows; give --url-column")
        if len(best) > 1:
            which = ", ".join(best)
            raise ValueError(f"{path}: which of {which} is the image's url? give --url-column")
        url = best[0]
    others = [name for name in columns if name != url]
    if caption is None and len(others) != 1:
        which = ", ".join(others)
        raise ValueError(f"{path}: which of {which} is the caption? give --caption-column")
    caption = caption or others[0]
    if url == caption:
        raise ValueError(f"{path}: url and caption are both column {url}")
    notes = found.notes
    if shares[columns.index(url)] < 0.5:
        notes += (f"column {url} holds few URLs in the first rows: is it the right one?",)
    return replace(found, url_column=url, caption_column=caption, notes=notes)


def _share(rows: list[list[str]], place: int, is_url: Callable[[str], Any]) -> float:
    values = [row[place] for row in rows if len(row) > place and row[place]]
    return sum(bool(is_url(v)) for v in values) / len(values) if values else 0.0


def _column(
    path: Path, columns: Sequence[str], name: str | None, option: str, usual: Sequence[str]
) -> str | None:
    """The column that was named, by name or number, else one with a usual name, else None."""
    if name is None:
        lower = [each.lower() for each in columns]
        return next((columns[lower.index(each)] for each in usual if each in lower), None)
    if name in columns:
        return name
    if name.isdigit() and int(name) < len(columns):
        return columns[int(name)]
    raise ValueError(f"{path} has no column {name}: {option} must be of {', '.join(columns)}")
