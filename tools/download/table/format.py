"""What kind of table is this: its layout, its columns, whether its first row is a header.

Everything is decided from the first megabyte and shown before anything is downloaded. Text tables
are looked at as bytes; a byte that is not UTF-8 becomes a lone surrogate (Python's
`surrogateescape`), so that nothing is lost before it can be counted.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

LAYOUTS = ("tsv", "csv", "jsonl", "parquet")
SUFFIXES = (".tsv", ".csv", ".txt", ".jsonl", ".json", ".ndjson", ".parquet")
URL_NAMES = ("url", "urls", "image_url", "img_url", "image_link", "link", "href", "image", "src")
CAPTION_NAMES = (
    "caption", "text", "captions", "texts", "title", "alt", "alt_text", "description",
    "top_caption",
)  # fmt: skip
BOM = b"\xef\xbb\xbf"
MAX_FIELD_BYTES = 1 << 30
_SAMPLE_BYTES = 1 << 20
_SAMPLE_ROWS = 200
_SHOWN_ROWS = 3
_URL = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//\S")
_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_null,
)
_NOT_TABLES = {
    b"PK\x03\x04": "a zip file: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first (zstd -d)",
    b"BZh": "packed with bzip2: unpack it first (bunzip2)",
    b"\xfd7zXZ\x00": "packed with xz: unpack it first (unxz)",
    b"\xff\xfe": "UTF-16: convert it first (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: convert it first (iconv -f UTF-16 -t UTF-8)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFormat:
    """How the rows of a table are read."""

    layout: str
    """`tsv` (split at tabs, no quoting), `csv` (quoted), `jsonl` or `parquet`."""
    gzipped: bool
    """The text is packed with gzip."""
    header: tuple[str, ...] | None
    """Names in the first row; None where the first row is data, and for jsonl and parquet."""
    columns: tuple[str, ...]
    """All columns; `0`, `1` … where the table has no names."""
    url_column: str
    """Which of them is the URL."""
    caption_column: str
    """Which of them is the caption."""
    notes: tuple[str, ...] = ()
    """What a person should know about the choice."""

    @property
    def url_index(self) -> int:
        """Place of the URL among the columns."""
        return self.columns.index(self.url_column)

    @property
    def caption_index(self) -> int:
        """Place of the caption among the columns."""
        return self.columns.index(self.caption_column)

    def describe(self) -> list[str]:
        """Lines to print."""
        packed = ", gzip" if self.gzipped else ""
        if self.layout in ("tsv", "csv"):
            packed += ", header row" if self.header else ", no header row"
        named = f"url = column {self.url_column}, caption = column {self.caption_column}"
        return [f"{self.layout}{packed}; {named}", *self.notes]


def looks_like_url(text: str) -> bool:
    """Does it begin as a URL with a scheme, or with `//`."""
    return _URL.match(text) is not None


def detect_format(
    path: Path,
    *,
    layout: str | None = None,
    url_column: str | None = None,
    caption_column: str | None = None,
) -> TableFormat:
    """Find out how a table is to be read, from its first rows.

    Args:
        path: a local file.
        layout: one of `LAYOUTS`, to overrule what is found.
        url_column: name of the URL's column, or its number from 0 in a text table.
        caption_column: the same for the caption.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, or its columns are not clear; the message says what to give.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"--layout must be one of {', '.join(LAYOUTS)}, got {layout}")
    with path.open("rb") as file:
        magic = file.read(8)
    found = "parquet" if magic.startswith(b"PAR1") else layout
    if found == "parquet":
        return _parquet_format(path, url_column, caption_column)
    sample = _text_sample(path, gzipped=magic.startswith(b"\x1f\x8b"))
    found = found or _text_layout(path, sample)
    if found == "jsonl":
        columns, rows = _json_rows(path, sample)
        header = None
    else:
        rows = _delimited_rows(sample, found)
        header = _header(rows, (url_column, caption_column))
        rows = rows[1:] if header else rows
        columns = header or _numbered(path, rows)
        if header and not rows:
            raise ValueError(f"{path} holds a header row and nothing else")
    named = header is not None or found == "jsonl"
    url, caption, notes = _choose(path, columns, rows, url_column, caption_column, named)
    return TableFormat(
        layout=found,
        gzipped=magic.startswith(b"\x1f\x8b"),
        header=header if found in ("tsv", "csv") else None,
        columns=columns,
        url_column=url,
        caption_column=caption,
        notes=notes,
    )


def open_text(path: Path, *, gzipped: bool) -> BinaryIO:
    """Open the bytes of a text table, unpacked."""
    return cast("BinaryIO", gzip.open(path, "rb") if gzipped else path.open("rb"))


def _text_sample(path: Path, *, gzipped: bool) -> str:
    """The first whole lines of a text table."""
    try:
        with open_text(path, gzipped=gzipped) as file:
            data = file.read(_SAMPLE_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): fetch it again") from error
    if not data.strip():
        raise ValueError(f"{path} is empty")
    for magic, meaning in _NOT_TABLES.items():
        if data.startswith(magic):
            raise ValueError(f"{path} is {meaning}")
    if re.match(rb"\s*<(!doctype|html|\?xml)", data, re.IGNORECASE):
        raise ValueError(f"{path} is a web page, not a table: check the link it came from")
    if b"\n" not in data:
        if b"\r" in data:
            raise ValueError(f"{path} ends its lines with CR: convert it (tr '\\r' '\\n')")
        if len(data) == _SAMPLE_BYTES:
            raise ValueError(f"{path} has no line end in its first megabyte: it is no table")
    if len(data) == _SAMPLE_BYTES:
        data = data[: data.rindex(b"\n") + 1]
    return data.removeprefix(BOM).decode("utf-8", "surrogateescape")


def _text_layout(path: Path, sample: str) -> str:
    lines = [line for line in sample.split("\n")[:_SAMPLE_ROWS] if line.strip()]
    if lines[0].lstrip().startswith("{"):
        return "jsonl"
    if lines[0].lstrip().startswith("["):
        raise ValueError(f"{path} is one JSON list: write one object a line (jq -c '.[]')")
    with_tab = sum("\t" in line for line in lines)
    with_comma = sum("," in line for line in lines)
    by_name = path.name.removesuffix(".gz").endswith(".csv")
    if with_tab * 2 > len(lines) and not (by_name and with_comma == len(lines)):
        return "tsv"
    if with_comma * 2 > len(lines):
        return "csv"
    raise ValueError(
        f"{path} has neither tabs nor commas between its columns; a table needs a url and a "
        "caption in each row: give --layout if it is one"
    )


def _delimited_rows(sample: str, layout: str) -> list[list[str]]:
    if layout == "csv":
        csv.field_size_limit(MAX_FIELD_BYTES)
        reader = csv.reader(io.StringIO(sample, newline=""))
        rows = [row for _, row in zip(range(_SAMPLE_ROWS), reader, strict=False)]
    else:
        lines = sample.split("\n")[:_SAMPLE_ROWS]
        rows = [line.removesuffix("\r").split("\t") for line in lines]
    return [row for row in rows if any(row)]


def _header(rows: list[list[str]], given: tuple[str | None, str | None]) -> tuple[str, ...] | None:
    """The first row, if it names columns."""
    first = [name.strip() for name in rows[0]]
    if any(looks_like_url(name) for name in first):
        return None
    known = {*URL_NAMES, *CAPTION_NAMES, *(name.lower() for name in given if name)}
    if not any(name.lower() in known and not name.isdigit() for name in first):
        return None
    return tuple(first)


def _numbered(path: Path, rows: list[list[str]]) -> tuple[str, ...]:
    """Names for the columns of a table without a header."""
    ((width, _),) = Counter(len(row) for row in rows).most_common(1)
    if width < 2:
        raise ValueError(
            f"{path} has one column where it needs a url and a caption: see --layout for how "
            "its columns are separated"
        )
    return tuple(str(number) for number in range(width))


def _json_rows(path: Path, sample: str) -> tuple[tuple[str, ...], list[list[str]]]:
    """Keys that occur, and the values of the first rows as text."""
    objects: list[dict[str, object]] = []
    for line in sample.split("\n")[:_SAMPLE_ROWS]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            objects.append(value)
    if not objects:
        raise ValueError(f"{path} holds no JSON object in its first lines: give --layout")
    columns = tuple(dict.fromkeys(key for item in objects for key in item))
    rows = [[_shown(item.get(key)) for key in columns] for item in objects]
    return columns, rows


def _parquet_format(path: Path, url: str | None, caption: str | None) -> TableFormat:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            batch = next(file.iter_batches(batch_size=_SAMPLE_ROWS), None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole parquet file ({error}): fetch it again") from error
    if batch is None or not len(batch):
        raise ValueError(f"{path} is empty")
    rows = [[_shown(value) for value in row.values()] for row in batch.to_pylist()]
    columns = tuple(schema.names)
    url, caption, notes = _choose(path, columns, rows, url, caption, named=True)
    for name in (url, caption):
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_text(kind) for is_text in _TEXT_TYPES):
            raise ValueError(f"{path}: column {name} holds {kind}, not text; name another one")
    return TableFormat(
        layout="parquet",
        gzipped=False,
        header=None,
        columns=columns,
        url_column=url,
        caption_column=caption,
        notes=notes,
    )


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ("" if value is None else str(value))


def _choose(
    path: Path,
    columns: Sequence[str],
    rows: list[list[str]],
    url: str | None,
    caption: str | None,
    named: bool,
) -> tuple[str, str, tuple[str, ...]]:
    """The URL's and the caption's column, and what to say about the choice."""
    shares = [_share_of_urls(rows, place) for place in range(len(columns))]
    chosen_url = _given(path, columns, url, "--url-column")
    chosen_caption = _given(path, columns, caption, "--caption-column")
    notes: list[str] = []
    if named:
        lower = [name.lower() for name in columns]
        found_url = chosen_url or _first_named(columns, lower, URL_NAMES)
        found_caption = chosen_caption or _first_named(columns, lower, CAPTION_NAMES)
        if found_url and found_caption and url is None and caption is None:
            u, c = columns.index(found_url), columns.index(found_caption)
            if shares[c] > 0.5 > shares[u]:
                found_url, found_caption = found_caption, found_url
                notes.append("the names of the url and caption columns are swapped: put right")
        chosen_url, chosen_caption = found_url, found_caption
    if chosen_url is None:
        chosen_url = _column_of_urls(path, columns, shares)
    if chosen_caption is None:
        others = [name for name in columns if name != chosen_url]
        if len(others) != 1:
            names = ", ".join(others)
            raise ValueError(f"{path}: which of {names} is the caption? give --caption-column")
        (chosen_caption,) = others
    if chosen_url == chosen_caption:
        raise ValueError(f"{path}: url and caption are both column {chosen_url}")
    if shares[columns.index(chosen_url)] < 0.5:
        notes.append(f"column {chosen_url} holds few URLs in the first rows: is it the right one?")
    return chosen_url, chosen_caption, tuple(notes)


def _share_of_urls(rows: list[list[str]], place: int) -> float:
    values = [row[place] for row in rows if len(row) > place and row[place]]
    return sum(map(looks_like_url, values)) / len(values) if values else 0.0


def _given(path: Path, columns: Sequence[str], name: str | None, option: str) -> str | None:
    if name is None:
        return None
    if name in columns:
        return name
    if name.isdigit() and int(name) < len(columns):
        return columns[int(name)]
    raise ValueError(f"{path} has no column {name}: {option} must be of {', '.join(columns)}")


def _first_named(columns: Sequence[str], lower: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((columns[lower.index(name)] for name in wanted if name in lower), None)


def _column_of_urls(path: Path, columns: Sequence[str], shares: list[float]) -> str:
    best = max(shares)
    places = [place for place, share in enumerate(shares) if share == best]
    if best < 0.5:
        raise ValueError(f"{path}: no column holds URLs in the first rows; give --url-column")
    if len(places) > 1:
        names = ", ".join(columns[place] for place in places)
        raise ValueError(f"{path}: which of {names} is the image's url? give --url-column")
    return columns[places[0]]
