"""The table of a download: any url/caption table as parquet parts, nothing lost uncounted.

    OUT/table/part-00000.parquet …   row_id int64, url string, caption string, further columns
    OUT/table/table.json             what was read, how, and the counts of every finding

Rows come in an order that follows from their URLs and a seed alone, so those of one host are spread
over the whole table. The folder appears under its name when it is complete; an interrupted
conversion starts over; a table made from the same source with the same options is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import ParquetFileFormat, dataset, write_dataset

from tessera.pipeline.durable import sync_folder, write_text
from tessera.pipeline.index.database import open_database
from tessera.tools.download.table.formats import TableFormat, detect_format
from tessera.tools.download.table.rows import BASE_SCHEMA, DROPPED, Tally, read_batches
from tessera.tools.download.table.source import (
    combined_sha256,
    describe_file,
    is_remote,
    is_untouched,
    local_files,
)
from tessera.tools.download.table.summary import SUMMARY_FILE, TableSummary, load_summary

CC12M_URL = "https://storage.googleapis.com/conceptual_12m/cc12m.tsv"
CC12M_ROWS = 12_423_374
CC12M_BYTES = 2_707_204_412
_TAKEN_NAMES = {
    *("row_id", "url", "caption", "key", "status", "error_message", "width", "height"),
    *("original_width", "original_height", "exif", "sha256"),
}
_READING = ("layout", "url_column", "caption_column", "delimiter", "encoding")
_OPTIONS = (*_READING, "limit", "rows_per_host")
MEMORY = "1GB"
"""Of a database over the table of a download."""
HOST = r"""lower(regexp_extract(url,
    '^(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)', 1))"""
"""SQL: the host of a URL, empty where it has none."""


def prepare_table(source: str, folder: Path, **options: Any) -> TableSummary:
    """Make the table of a download, or take the one that is there.

    Args:
        source: a file, a folder of tables, or a URL (http, https, or what fsspec knows).
        folder: the table's folder. A copy of a URL goes to `source/` beside it.
        options: `layout`, `url_column`, `caption_column`, `delimiter` and `encoding` of
            `detect_format`; `seed` of the order; `rows_per_part`, a multiple of the rows of a
            shard; `limit`, rows of the source; `rows_per_host`, rows kept of each host.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is no table, holds no usable row, or the folder's table was made otherwise.
        OSError: it could not be fetched or written.
        RuntimeError: most rows had to be left out, or the official CC12M file gave another number
            of rows than it holds.
    """
    options = {**dict.fromkeys(_OPTIONS), "seed": 0, "rows_per_part": 1_000_000, **options}
    folder = folder.resolve()
    known = load_summary(folder)
    if known is not None:
        _check_same(known, source, options, folder)
        return known
    files = local_files(source, folder.with_name("source"))
    formats = [detect_format(path, **{n: options[n] for n in _READING}) for path in files]
    for line in formats[0].describe():
        print(f"table: {line}", file=sys.stderr)
    described = [describe_file(path) for path in files]
    extras, ignored = _extra_columns(files[0], formats[0])
    tally = Tally()
    with _partial_folder(folder) as partial:
        schema = pa.schema([*BASE_SCHEMA, *extras.values()])
        with pq.ParquetWriter(partial / "rows", schema, compression="zstd") as writer:
            for path, each in zip(files, formats, strict=True):
                missing = set(extras) - set(pq.read_schema(path).names if extras else ())
                if missing:
                    raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}")
                for batch in read_batches(path, each, tally, extras, options["limit"]):
                    writer.write_batch(batch)
        if not all(map(is_untouched, described)):
            raise OSError(f"{source} changed while it was read: start again when it is complete")
        made = _order([partial / "rows"], partial, tally, options)
        (partial / "rows").unlink()
        summary = TableSummary(
            source=source,
            source_files=described,
            source_sha256=combined_sha256(described),
            source_bytes=sum(file["num_bytes"] for file in described),
            options=options,
            format=formats[0].describe()[0],
            format_notes=list(dict.fromkeys(note for each in formats for note in each.notes)),
            columns=schema.names,
            extra_columns={each.name: name for name, each in extras.items()},
            ignored_columns=ignored,
            num_source_rows=tally.num_rows,
            warnings=[],
            **made,
        )
        summary = replace(summary, warnings=list(_check_result(summary)))
        _finish(partial, folder, summary)
    return summary


def write_retry_table(
    first: Path, row_ids: pa.Array, folder: Path, *, pass_number: int
) -> TableSummary:
    """Write rows of a first pass as the table of a further one.

    Raises:
        ValueError: the first table is not there, or lacks some of the rows.
    """
    summary = load_summary(first)
    if summary is None:
        raise ValueError(f"{first} holds no table: put back the table of the first pass")
    options = {**summary.options, "seed": summary.options["seed"] + pass_number}
    parts, wanted = sorted(first.glob("part-*")), pa.table({"row_id": row_ids})
    with _partial_folder(folder) as partial:
        made = _order(parts, partial, Tally(), options | {"rows_per_host": None}, wanted)
        if made["num_rows"] != len(row_ids):
            raise ValueError(
                f"{first} holds {made['num_rows']} of the {len(row_ids)} rows that failed: it is "
                "not the table of the first pass. Put that back"
            )
        made |= {"num_source_rows": made["num_rows"], "warnings": []}
        summary = replace(summary, pass_number=pass_number, **made)
        _finish(partial, folder, summary)
    return summary


def _order(
    files: list[Path],
    folder: Path,
    tally: Tally,
    options: dict[str, Any],
    wanted: pa.Table | None = None,
) -> dict[str, Any]:
    """Drop repeated URLs, write the parts in their order; returns what the summary says of them."""
    spill = folder / "spill"
    with open_database(spill, memory=MEMORY, threads=0, ordered=False) as database:
        database.register("files", dataset([str(path) for path in files], format="parquet"))
        database.register("wanted", pa.table({"row_id": [0]}) if wanted is None else wanted)
        chosen = "" if wanted is None else "SEMI JOIN wanted USING (row_id)"
        database.execute(f"CREATE VIEW rows AS SELECT *, {HOST} AS host FROM files {chosen}")  # noqa: S608
        database.execute(
            """CREATE TABLE left_out AS SELECT row_id,
                if(same, 'duplicate_url', 'duplicate_url_other_caption') AS why
            FROM (
                SELECT row_id, row_number() OVER urls AS place,
                    hash(caption) = first_value(hash(caption)) OVER urls AS same
                FROM rows WINDOW urls AS (PARTITION BY url ORDER BY row_id))
            WHERE place > 1"""
        )
        if options["rows_per_host"]:
            database.execute(
                """INSERT INTO left_out SELECT row_id, 'over_host_limit' FROM rows
                ANTI JOIN left_out USING (row_id)
                QUALIFY row_number() OVER (PARTITION BY host ORDER BY row_id) > ?""",
                [options["rows_per_host"]],
            )
        dropped = "SELECT why, count(*), min(row_id, 3) FROM left_out GROUP BY why ORDER BY why"
        for why, count, first in database.execute(dropped).fetchall():
            tally.note(why, first, count, kind="dropped")
        kept = "FROM rows ANTI JOIN left_out USING (row_id)"
        hosts = f"SELECT host, count(*) AS num {kept} GROUP BY host ORDER BY num DESC, host"
        num_hosts = database.execute(f"SELECT count(DISTINCT host) {kept}").fetchall()[0][0]
        top = database.execute(f"{hosts} LIMIT 20").fetchall()
        first_rows = database.execute(
            "SELECT url, caption FROM rows ORDER BY row_id LIMIT 5"
        ).fetchall()
        ordered = database.sql(
            f"SELECT * EXCLUDE host {kept} ORDER BY md5(url || ?), row_id",
            params=[f" {options['seed']}"],
        ).to_arrow_reader(65_536)
        part_rows = _write_parts(ordered, folder, options["rows_per_part"])
    shutil.rmtree(spill, ignore_errors=True)
    return {
        "num_rows": sum(part_rows),
        "part_rows": part_rows,
        **{kind: dict(tally.counts[kind]) for kind in ("repairs", "oddities", "dropped")},
        "examples": tally.examples,
        "num_hosts": num_hosts,
        "top_hosts": [list(row) for row in top],
        "first_rows": [list(row) for row in first_rows],
    }


def _write_parts(rows: pa.RecordBatchReader, folder: Path, rows_per_part: int) -> list[int]:
    write_dataset(
        rows,
        folder,
        format="parquet",
        file_options=ParquetFileFormat().make_write_options(compression="zstd"),
        basename_template="{i}.unnumbered",
        max_rows_per_file=rows_per_part,
        max_rows_per_group=min(rows_per_part, 1 << 17),
        use_threads=False,
        preserve_order=True,
        existing_data_behavior="overwrite_or_ignore",
    )
    counts = []
    for number in range(len(list(folder.glob("*.unnumbered")))):
        path = (folder / f"{number}.unnumbered").rename(folder / f"part-{number:05d}.parquet")
        counts.append(pq.read_metadata(path).num_rows)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return counts


def _check_same(known: TableSummary, source: str, options: dict[str, Any], folder: Path) -> None:
    """Refuse to resume with another source or other options."""
    before = {**dict.fromkeys(_OPTIONS), **known.options}
    other = [f"{k} {before[k]!r}, now {v!r}" for k, v in options.items() if before[k] != v]
    hint = "give the same, or another output folder"
    if other:
        raise ValueError(f"the table in {folder} was made with {'; '.join(other)}: {hint}")
    gone = not any(Path(file["path"]).exists() for file in known.source_files)
    if source == known.source and (is_remote(source) or gone):
        return  # perhaps deleted after the table was made
    if is_remote(source):
        raise ValueError(f"the table in {folder} was made from {known.source}: {hint}")
    files = local_files(source, folder.with_name("source"))
    same_paths = [str(file) for file in files] == [file["path"] for file in known.source_files]
    if same_paths and all(map(is_untouched, known.source_files)):
        return
    if combined_sha256([describe_file(path) for path in files]) != known.source_sha256:
        raise ValueError(
            f"the table in {folder} was made from {known.source} with {known.source_bytes} bytes "
            f"and sha256 {known.source_sha256[:16]}…; {source} has other content: {hint}"
        )


def _extra_columns(path: Path, how: TableFormat) -> tuple[dict[str, pa.Field], list[str]]:
    """Further columns of a parquet table: source name to field; and those left out."""
    schema = pq.read_schema(path) if how.layout == "parquet" else pa.schema([])
    names = dict.fromkeys(schema.names or how.columns)
    others = [name for name in names if name not in (how.url_column, how.caption_column)]
    carried = {}
    for name in others:
        place = schema.get_field_index(name)  # -1 where it is there twice
        kind = schema.types[place] if place >= 0 else pa.null()
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = str(kind) in ("string", "large_string", "string_view")
        checks = ("integer", "floating", "boolean")
        if text or any(getattr(pa.types, f"is_{check}")(kind) for check in checks):
            new = f"source_{name}" if name in _TAKEN_NAMES else name
            carried[name] = pa.field(new, pa.string() if text else kind)
    return carried, [name for name in others if name not in carried]


def _check_result(table: TableSummary) -> Iterator[str]:
    """Warnings about a table.

    Raises:
        ValueError: no row can be used.
        RuntimeError: most rows cannot be used, or the official file was read wrongly.
    """
    counts = ", ".join(f"{count} {name}" for name, count in table.dropped.items()) or "no rows"
    if not table.num_rows:
        raise ValueError(f"{table.source} holds no usable row: {counts}")
    lost = sum(table.dropped.get(why, 0) for why in DROPPED)
    if lost * 2 > table.num_source_rows:
        raise RuntimeError(
            f"{lost} of {table.num_source_rows} rows of {table.source} cannot be used ({counts}): "
            "see --layout, --delimiter, --encoding, --url-column and --caption-column"
        )
    whole = table.options["limit"] is None
    if whole and table.source_bytes == CC12M_BYTES and table.num_source_rows != CC12M_ROWS:
        raise RuntimeError(
            f"{table.source} has the size of the official cc12m.tsv but gave "
            f"{table.num_source_rows} rows where that holds {CC12M_ROWS}: this is a fault of the "
            "reader, please report it"
        )
    if Path(table.source).name.startswith("cc12m.tsv") and table.source_bytes != CC12M_BYTES:
        yield (
            f"{table.source} is called cc12m.tsv but has {table.num_source_rows} rows and "
            f"{table.source_bytes} bytes where the official file has {CC12M_ROWS} and {CC12M_BYTES}"
        )
    if lost * 100 > table.num_source_rows:
        yield f"{lost} of {table.num_source_rows} rows lack a URL or a caption, or are too long"
    if table.repairs.get("several_captions"):
        yield (
            f"{table.repairs['several_captions']} cells hold a list of captions: the first of each "
            "was taken; give one row for each to have them all"
        )


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
    text = json.dumps(asdict(summary), indent=1, ensure_ascii=False)
    write_text(partial / SUMMARY_FILE, text)
    if folder.is_dir():
        folder.rmdir()  # empty: `load_summary` has looked
    partial.rename(folder)
    sync_folder(folder.parent)
