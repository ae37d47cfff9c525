"""Which reader a table needs, by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tessera.pipeline.index.arrow_tables import (
    ParquetTable,
    SavedDataset,
    is_saved_dataset,
    parquet_files,
)
from tessera.pipeline.index.delimited import SUFFIXES as DELIMITED
from tessera.pipeline.index.delimited import DelimitedTable
from tessera.pipeline.index.foreign_tables import Table
from tessera.pipeline.index.json_tables import JsonLinesTable, JsonTable

_JSON_LINES = (".jsonl", ".ndjson")
KINDS = "a .csv, .tsv, .txt, .jsonl, .json or .parquet file, or a folder of parquet files"
"""What is read, for messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """How a table is to be read, where its content does not say so."""

    delimiter: str = ""
    """Character between the fields of a CSV; found out if not given. `tab` stands for a tab."""
    encoding: str = ""
    """Encoding of a CSV, such as utf-8, cp1252 or utf-16; found out if not given."""
    header: bool = True
    """Whether a CSV or TSV begins with the names of its columns; else columns are numbers."""
    split: str | None = None
    """Part of a Hugging Face data set that has parts."""


def open_table(files: tuple[Path, ...], options: TableOptions) -> Table:
    """Open one or more files of the same kind, or a folder that is a data set, as one table.

    Args:
        files: read one after the other.
        options: how they are to be read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: they are of no known kind, or of several kinds.
    """
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise FileNotFoundError(f"there is no {', '.join(missing)}")
    if len(files) == 1 and files[0].is_dir():
        return _open_folder(files[0], options.split)
    kinds = {path.suffix.lower() for path in files}
    if len(kinds) > 1:
        raise ValueError(f"files of one table are of one kind, got {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind in DELIMITED:
        delimiter = {"tab": "\t", "\\t": "\t"}.get(options.delimiter, options.delimiter)
        return DelimitedTable(
            files=files, delimiter=delimiter, encoding=options.encoding, header=options.header
        )
    if kind in _JSON_LINES:
        return JsonLinesTable(files=files)
    if kind == ".json":
        return JsonTable(files=files)
    if kind == ".parquet":
        return ParquetTable(files)
    raise ValueError(f"{files[0]} is not {KINDS}; rename it if it is one of them")


def _open_folder(folder: Path, split: str | None) -> Table:
    if is_saved_dataset(folder):
        return SavedDataset(folder, split)
    files = parquet_files(folder, split)
    if not files:
        raise ValueError(f"{folder} holds no parquet files")
    return ParquetTable(files)
