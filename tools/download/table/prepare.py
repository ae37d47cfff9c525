"""The table of a download: any url/caption table as parquet parts, nothing lost uncounted.

    OUT/table/part-00000.parquet …   row_id int64, url string, caption string, further columns
    OUT/table/table.json             what was read, how, and the counts of every finding

`table_findings` says what is counted, `table_rows` what a row id is, `table_spread` in which order
rows come. The folder appears under its name when it is complete. An interrupted conversion starts
over; a table that is there is kept if source and options are those it was made with, else refused.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.durable import sync_folder, write_text
from tools.download.table.findings import Tally
from tools.download.table.format import TableFormat, detect_format
from tools.download.table.rows import clean_rows, read_rows
from tools.download.table.source import (
    SourceFile,
    Tell,
    combined_sha256,
    describe_file,
    is_remote,
    local_files,
    unpacked_bytes,
)
from tools.download.table.spread import Spread, num_buckets_for, spread_rows
from tools.download.table.summary import SUMMARY_FILE, VERSION, TableSummary, load_summary

CC12M_URL = "https://storage.googleapis.com/conceptual_12m/cc12m.tsv"
CC12M_ROWS = 12_423_374
CC12M_BYTES = 2_707_204_412
BASE_SCHEMA = pa.schema([("row_id", pa.int64()), ("url", pa.string()), ("caption", pa.string())])
__all__ = [
    "BASE_SCHEMA",
    "CC12M_BYTES",
    "CC12M_ROWS",
    "CC12M_URL",
    "TableSummary",
    "load_summary",
    "prepare_table",
    "table_batches",
    "write_retry_table",
]
_FIRST_ROWS = 5
_TELL_EVERY_ROWS = 1_000_000
_TAKEN_NAMES = {
    "row_id", "url", "caption", "key", "status", "error_message", "width", "height",
    "original_width", "original_height", "exif", "sha256",
}  # fmt: skip


def prepare_table(
    source: str | Path,
    folder: Path,
    *,
    layout: str | None = None,
    url_column: str | None = None,
    caption_column: str | None = None,
    seed: int = 0,
    rows_per_part: int = 1_000_000,
    limit: int | None = None,
    tell: Tell | None = None,
) -> TableSummary:
    """Make the table of a download, or take the one that is there.

    Args:
        source: a file, a folder of tables, or a URL (http, https, or what fsspec knows).
        folder: the table's folder. A copy of a URL goes to `source/` beside it.
        layout: `tsv`, `csv`, `jsonl` or `parquet`, where it is found wrongly.
        url_column: name of the URL's column, or its number from 0.
        caption_column: the same for the caption.
        seed: of the order of the rows.
        rows_per_part: rows of a part. A multiple of the rows of a shard leaves no short shards
            but the last.
        limit: take only so many rows from the beginning of the source, bad ones counted.
        tell: told about progress, a line each; stderr if left out.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is no table, holds no usable row, or the folder's table was made otherwise.
        OSError: it could not be fetched or written.
        RuntimeError: the official CC12M file gave another number of rows than it holds.
    """
    tell = tell or _tell_stderr
    if rows_per_part < 1 or (limit is not None and limit < 1):
        raise ValueError(f"rows_per_part and limit must be at least 1: {rows_per_part}, {limit}")
    options = {
        "layout": layout,
        "url_column": url_column,
        "caption_column": caption_column,
        "seed": seed,
        "rows_per_part": rows_per_part,
        "limit": limit,
    }
    folder = Path(folder).resolve()
    source = str(source)
    known = load_summary(folder)
    if known is not None:
        _check_same(known, source, options, folder, tell)
        return known
    files = local_files(source, folder.with_name("source"), tell)
    return _convert(source, files, folder, options, tell)


def write_retry_table(
    batches: Iterable[pa.RecordBatch], folder: Path, first: TableSummary, *, pass_number: int
) -> TableSummary:
    """Write rows of a first pass as the table of a further one.

    Args:
        batches: rows of the first table, with its columns and ids.
        folder: to make.
        first: summary of the first table.
        pass_number: from 1.

    Raises:
        ValueError: there are no rows.
    """
    iterator = iter(batches)
    head = next(iterator, None)
    if head is None:
        raise ValueError("a retry needs at least one row")
    tally = Tally()

    def counted() -> Iterator[pa.RecordBatch]:
        yield head
        yield from iterator

    with _partial_folder(folder) as partial:
        spread = spread_rows(
            counted(),
            partial,
            schema=head.schema,
            tally=tally,
            num_buckets=num_buckets_for(first.source_bytes),
            seed=int(first.options["seed"]) + pass_number,
            rows_per_part=int(first.options["rows_per_part"]),
        )
        values = {item.name: getattr(first, item.name) for item in fields(first)}
        values |= _counts(tally, spread)
        values |= {"pass_number": pass_number, "num_source_rows": spread.num_rows, "warnings": ()}
        summary = TableSummary(**values)
        _finish(partial, folder, summary)
    return summary


def table_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Rows of a table, part after part, 65,536 at a time."""
    for path in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=65_536)


def _tell_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _convert(
    source: str, files: list[Path], folder: Path, options: dict[str, Any], tell: Tell
) -> TableSummary:
    """Read the files and write the folder."""
    formats = [
        detect_format(
            path,
            layout=options["layout"],
            url_column=options["url_column"],
            caption_column=options["caption_column"],
        )
        for path in files
    ]
    extras, ignored = _extra_columns(files[0], formats[0])
    schema = pa.schema([*BASE_SCHEMA, *extras.values()])
    for line in formats[0].describe():
        tell(f"table: {line}")
    described = tuple(describe_file(path, tell) for path in files)
    tally = Tally()
    first: list[tuple[str, str]] = []
    with _partial_folder(folder) as partial:
        batches = _clean_batches(files, formats, extras, tally, first, options["limit"], tell)
        spread = spread_rows(
            batches,
            partial,
            schema=schema,
            tally=tally,
            num_buckets=num_buckets_for(sum(unpacked_bytes(path) for path in files)),
            seed=options["seed"],
            rows_per_part=options["rows_per_part"],
        )
        _check_result(source, described, tally, spread, whole=options["limit"] is None)
        summary = TableSummary(
            version=VERSION,
            pass_number=0,
            source=source,
            source_files=described,
            source_sha256=combined_sha256(described),
            source_bytes=sum(file.num_bytes for file in described),
            options=options,
            format=formats[0].describe()[0],
            format_notes=tuple(dict.fromkeys(n for found in formats for n in found.notes)),
            columns=tuple(schema.names),
            extra_columns={field.name: name for name, field in extras.items()},
            ignored_columns=ignored,
            num_source_rows=tally.num_rows,
            first_rows=tuple(first),
            warnings=tuple(_warnings(source, described, tally)),
            **_counts(tally, spread),
        )
        _finish(partial, folder, summary)
    return summary


def _check_same(
    known: TableSummary, source: str, options: dict[str, Any], folder: Path, tell: Tell
) -> None:
    """Refuse to go on with another source or other options."""
    other = [f"{k} {known.options[k]!r}, now {v!r}" for k, v in options.items()
             if known.options[k] != v]  # fmt: skip
    hint = "give the same, or another output folder"
    if other:
        raise ValueError(f"the table in {folder} was made with {'; '.join(other)}: {hint}")
    if source == known.source and is_remote(source):
        return
    recorded = [Path(file.path) for file in known.source_files]
    if source == known.source and not any(path.exists() for path in recorded):
        return  # deleted after the table was made
    if is_remote(source):
        raise ValueError(f"the table in {folder} was made from {known.source}: {hint}")
    files = local_files(source, folder.with_name("source"), tell)
    if files == recorded and all(file.untouched() for file in known.source_files):
        return
    same = sum(path.stat().st_size for path in files) == known.source_bytes and (
        combined_sha256([describe_file(path, tell) for path in files]) == known.source_sha256
    )
    if not same:
        raise ValueError(
            f"the table in {folder} was made from {known.source} with "
            f"{known.source_bytes} bytes and sha256 {known.source_sha256[:16]}…; {source} "
            f"has other content: {hint}"
        )


def _extra_columns(
    path: Path, table_format: TableFormat
) -> tuple[dict[str, pa.Field], tuple[str, ...]]:
    """Further columns of a parquet table: source name to field; and those left out."""
    chosen = {table_format.url_column, table_format.caption_column}
    others = [name for name in table_format.columns if name not in chosen]
    if table_format.layout != "parquet":
        return {}, tuple(others)
    schema = pq.read_schema(path)
    carried: dict[str, pa.Field] = {}
    for name in others:
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if _is_scalar(kind):
            new = f"source_{name}" if name in _TAKEN_NAMES else name
            text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            carried[name] = pa.field(new, pa.string() if text else kind)
    return carried, tuple(name for name in others if name not in carried)


def _is_scalar(kind: pa.DataType) -> bool:
    """Does a JSON value hold it: img2dataset writes every column to each sample's json."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return text or number or pa.types.is_boolean(kind) or pa.types.is_string_view(kind)


def _clean_batches(
    files: list[Path],
    formats: list[TableFormat],
    extras: dict[str, pa.Field],
    tally: Tally,
    first: list[tuple[str, str]],
    limit: int | None,
    tell: Tell,
) -> Iterator[pa.RecordBatch]:
    """Good rows of all files; also collects the first few and says how far it is."""
    schema = pa.schema([*BASE_SCHEMA, *extras.values()])
    names = [field.name for field in extras.values()]
    told = 0
    for path, table_format in zip(files, formats, strict=True):
        missing = set(extras) - set(table_format.columns)
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))} of {files[0]}")
        for raw in read_rows(path, table_format, extra_columns=list(extras)):
            if limit is not None:
                raw = raw.head(limit - tally.num_rows)
            batch = clean_rows(raw, tally.num_rows, tally, names).cast(schema)
            if len(first) < _FIRST_ROWS:
                rows = batch.slice(0, _FIRST_ROWS - len(first)).to_pylist()
                first += [(row["url"], row["caption"]) for row in rows]
            yield batch
            if tally.num_rows == limit:
                return
            if tally.num_rows - told >= _TELL_EVERY_ROWS:
                told = tally.num_rows
                tell(f"table: {told} rows read")


def _check_result(
    source: str,
    described: tuple[SourceFile, ...],
    tally: Tally,
    spread: Spread,
    *,
    whole: bool,
) -> None:
    if not all(file.untouched() for file in described):
        raise OSError(f"{source} changed while it was read: start again when it is complete")
    if not spread.num_rows:
        counts = ", ".join(f"{count} {name}" for name, count in tally.dropped.items())
        raise ValueError(f"{source} holds no usable row: {counts or 'no rows'}")
    official = len(described) == 1 and described[0].num_bytes == CC12M_BYTES
    if whole and official and tally.num_rows != CC12M_ROWS:
        raise RuntimeError(
            f"{source} has the size of the official cc12m.tsv but gave {tally.num_rows} rows "
            f"where that holds {CC12M_ROWS}: this is a fault of the reader, please report it"
        )


def _warnings(source: str, described: tuple[SourceFile, ...], tally: Tally) -> Iterator[str]:
    """What is not as it should be."""
    named = Path(source).name.startswith("cc12m.tsv")
    size = sum(file.num_bytes for file in described)
    if named and size != CC12M_BYTES:
        yield (
            f"{source} is called cc12m.tsv but has {tally.num_rows} rows and {size} bytes where "
            f"the official file has {CC12M_ROWS} and {CC12M_BYTES}"
        )
    lost = sum(tally.dropped.values()) - tally.dropped["duplicate_url"]
    if lost * 100 > tally.num_rows:
        yield f"{lost} of {tally.num_rows} rows have no URL or no caption, or another one's URL"


def _counts(tally: Tally, spread: Spread) -> dict[str, Any]:
    return {
        "num_rows": spread.num_rows,
        "num_parts": len(spread.part_rows),
        "part_rows": spread.part_rows,
        "repairs": dict(tally.repairs),
        "oddities": dict(tally.oddities),
        "dropped": dict(tally.dropped),
        "examples": tally.examples,
        "num_hosts": spread.num_hosts,
        "top_hosts": spread.top_hosts,
    }


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder beside the table's; what an interrupted conversion left is removed."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _finish(partial: Path, folder: Path, summary: TableSummary) -> None:
    write_text(partial / SUMMARY_FILE, summary.to_json())
    if folder.is_dir():
        folder.rmdir()  # empty: `load_summary` has looked
    partial.rename(folder)
    sync_folder(folder.parent)
