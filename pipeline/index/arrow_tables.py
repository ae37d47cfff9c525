"""Parquet files, one or a folder of them, and Hugging Face data sets saved to a folder.

Both are read a bounded number of bytes at a time. A file of some kilobytes can claim gigabytes:
by compression, by one long value that all rows point to, by billions of empty rows. Compression
and counts are checked before anything is unpacked, and values are kept once (as dictionaries),
however many rows have them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tessera.pipeline.index.arrow_cells import BadCell, cells_of, is_binary, is_text
from tessera.pipeline.index.cells import MAX_TEXT_CHARACTERS
from tessera.pipeline.index.foreign_tables import BadRow, Row, check_columns

_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 64 * 1024**2
_FREE_BYTES = 256 * 1024**2
"""A column of a row group may unpack to so many bytes, whatever its size in the file."""
_MOST_EXPANSION = 200
"""A larger column may have so many times the bytes that it has in the file."""
_FREE_VALUES = 4_000_000
_MOST_VALUES_PER_BYTE = 8
"""A file may claim so many values a byte, beyond those that every file may have."""
_SPLIT = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")


_ID_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_fixed_size_binary,
)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets`' `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def parquet_files(folder: Path, split: str | None) -> tuple[Path, ...]:
    """The parquet files below a folder in the order of their names, as on the Hugging Face hub.

    Args:
        folder: with `train-00000-of-00003.parquet` and so on, in it or in its sub-folders.
        split: the part of the data set to take, such as `train`.

    Returns:
        Empty where the folder holds none.

    Raises:
        ValueError: there are several splits and none was chosen, or there is no such split.
    """
    files = sorted(
        path
        for path in folder.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    by_split: dict[str, list[Path]] = {}
    for path in files:
        found = _SPLIT.fullmatch(path.name)
        by_split.setdefault(found["split"] if found else path.parent.name, []).append(path)
    named = [name for name in by_split if any(_SPLIT.fullmatch(p.name) for p in by_split[name])]
    if split is None and len(named) < 2:
        return tuple(files)
    if split not in by_split:
        listed = ", ".join(sorted(by_split))
        raise ValueError(f"{folder} has the splits {listed}; choose one with --split")
    return tuple(by_split[split])


class ArrowTable:
    """What parquet files and saved data sets have in common: Arrow batches in the order of rows."""

    files: tuple[Path, ...]
    schema: pa.Schema

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.RecordBatch]]:
        """Batches of some columns, each of a bounded number of bytes, and the file of each."""
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """See `Table`."""
        return self.schema.names

    @property
    def notes(self) -> list[str]:
        """See `Table`."""
        return [f"{len(self.files)} files"] if len(self.files) > 1 else []

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """See `Table`."""
        check_columns(self.names, columns, self._place)
        number, row, last = 0, 0, None
        for path, batch in self.batches(list(dict.fromkeys(columns))):
            row = row if path == last else 0
            last = path
            suffix = f" of {path.name}" if len(self.files) > 1 else ""
            cells = [cells_of(batch.column(name)) for name in columns]
            for values in zip(*cells, strict=True):
                where = f"row {row}{suffix}"
                bad = next((each for each in values if isinstance(each, BadCell)), None)
                if bad:
                    yield BadRow(where, bad.problem, bad.detail)
                else:
                    yield Row(where, list(values), number)
                row += 1
                number += 1

    def holds_bytes(self, column: str) -> bool:
        """Whether the cells of a column are the bytes of files, not paths.

        Raises:
            ValueError: they are neither.
        """
        check_columns(self.names, [column], self._place)
        kind = self.schema.field(column).type
        if is_text(kind) or (pa.types.is_dictionary(kind) and is_text(kind.value_type)):
            return False
        names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
        if "bytes" in names or is_binary(kind):
            return True
        raise ValueError(
            f"the column {column!r} holds {kind}, neither paths nor the bytes of image files; "
            "name another one with --image-column"
        )

    def cells(self, column: str) -> Iterator[object]:
        """The cells of one column in the order of the rows, one at a time in memory.

        A struct of bytes and path is a dict, a damaged cell is None.

        Raises:
            ValueError: the file cannot be read on.
        """
        check_columns(self.names, [column], self._place)
        for _, batch in self.batches([column]):
            yield from (None if isinstance(cell, BadCell) else cell
                        for cell in cells_of(batch.column(0), limit=None))  # fmt: skip

    def class_names(self, column: str) -> list[str] | None:
        """Names that a Hugging Face data set has for the numbers of a column."""
        stored = (self.schema.metadata or {}).get(b"huggingface")
        if stored is None:
            return None
        try:
            feature = json.loads(stored)["info"]["features"][column]
            names = feature["names"] if feature.get("_type") == "ClassLabel" else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return [" ".join(str(name).split()) for name in names] if names else None

    @property
    def _place(self) -> str:
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)


class ParquetTable(ArrowTable):
    """Parquet files with the columns of the first."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        """Read the schema.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file is no parquet file.
        """
        self.files = files
        self.schema = open_parquet(files[0]).schema_arrow

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.RecordBatch]]:
        """See `ArrowTable`.

        Raises:
            ValueError: a file is damaged, lacks a column, or would unpack beyond reason.
        """
        for path in self.files:
            for batch in parquet_batches(path, columns):
                yield path, batch


class SavedDataset(ArrowTable):
    """What `datasets`' `save_to_disk` wrote: Arrow streams with a few lines of JSON beside them."""

    def __init__(self, folder: Path, split: str | None) -> None:
        """Find the files.

        Raises:
            ValueError: a split is missing, or the files are damaged.
        """
        try:
            self.files = _data_files(folder, split)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the JSON files of {folder} are damaged: {error!r}") from None
        if not self.files:
            raise ValueError(f"{folder} names no data files")
        self._folder = folder
        with _damage_named(folder):
            self.schema = pa.ipc.open_stream(pa.memory_map(str(self.files[0]))).schema

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.RecordBatch]]:
        """See `ArrowTable`.

        Raises:
            ValueError: a file is damaged.
        """
        for path in self.files:
            with _damage_named(self._folder):
                stream = pa.ipc.open_stream(pa.memory_map(str(path)))
                for batch in stream:
                    part = batch.select(list(columns))
                    # Offsets that lead outside of the file would be followed.
                    part.validate(full=True)
                    for start in range(0, len(part), _ROWS_AT_ONCE):
                        yield path, part.slice(start, _ROWS_AT_ONCE)

    def cell(self, row: int, column: str) -> object:
        """One cell, whatever its place; a damaged one is None."""
        with _damage_named(self._folder):
            cell = self._mapped.column(column).slice(row, 1).combine_chunks()
            found = cells_of(cell, limit=None)[0]
        return None if isinstance(found, BadCell) else found

    @cached_property
    def _mapped(self) -> pa.Table:
        with _damage_named(self._folder):
            streams = [pa.ipc.open_stream(pa.memory_map(str(path))) for path in self.files]
            table = pa.concat_tables([stream.read_all() for stream in streams])
            # Offsets that lead outside of the file would be followed.
            table.validate(full=True)
            return table


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Turn what Arrow raises on damaged files into a ValueError that names the folder."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"the Arrow files of {folder} are damaged ({error})") from None


def open_parquet(path: Path, columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a parquet file whose texts and bytes come as dictionaries.

    Args:
        path: the file.
        columns: that will be read; what they claim to unpack to is checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no parquet file, lacks a column or has it twice, or a column would unpack
            beyond reason.
    """
    try:
        plain = pq.ParquetFile(path)
        check_columns(plain.schema_arrow.names if columns else [], columns, str(path))
        leaves = [plain.schema.column(n) for n in range(len(plain.schema))]
        wanted = [leaf.path for leaf in leaves if leaf.path.split(".")[0] in columns]
        _check_claims(path, columns)
        kept_once = [
            leaf.path
            for leaf in leaves
            if leaf.path in wanted and leaf.physical_type == "BYTE_ARRAY"
        ]
        return pq.ParquetFile(path, read_dictionary=kept_once, buffer_size=1 << 20)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, duckdb.Error, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no parquet file ({error})") from None


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a parquet file, some megabytes at a time; long values are kept once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `open_parquet`, or the file cannot be read on.
    """
    number = 0
    with open_parquet(path, columns) as file:
        try:
            for group in range(file.num_row_groups):
                size = _rows_at_once(file.metadata.row_group(group))
                for batch in file.iter_batches(size, row_groups=[group], columns=list(columns)):
                    yield batch
                    number += len(batch)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read after row {number} ({error})") from None


def id_batches(path: Path, column: str) -> Iterator[pa.Array]:
    """A column of ids, some at a time: texts (also where they were kept as bytes), numbers, hashes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `parquet_batches`, or the column holds something else than ids.
    """
    for batch in parquet_batches(path, [column]):
        ids = plain_values(batch.column(0), f"{path}, column {column!r}")
        if is_binary(ids.type):
            try:
                ids = ids.cast(pa.large_string())
            except pa.ArrowInvalid:
                raise ValueError(f"{path}: the column {column!r} holds bytes, not text") from None
        if not any(test(ids.type) for test in _ID_TYPES):
            hint = ""
            if pa.types.is_floating(ids.type):
                hint = ", as pandas writes ids where one is missing: write the column as text"
            raise ValueError(f"{path}: the column {column!r} holds {ids.type}, not ids{hint}")
        yield ids


def plain_values(column: pa.Array, where: str) -> pa.Array:
    """A column whose texts or bytes came as a dictionary, with each value in its row.

    Raises:
        ValueError: a value is so long that the rows would need far more memory than the file.
    """
    if not pa.types.is_dictionary(column.type):
        return column
    longest = pc.call_function("max", [pc.call_function("binary_length", [column.dictionary])])
    if (longest.as_py() or 0) > 4 * MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"{where} holds a text of {longest.as_py():,} bytes; the limit is "
            f"{4 * MAX_TEXT_CHARACTERS:,}"
        )
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where} is damaged ({error})") from None
    return column.dictionary_decode()


def _rows_at_once(group: Any) -> int:
    """So many rows of a row group that a batch has a bounded number of bytes."""
    a_row = max(1, group.total_byte_size // max(1, group.num_rows))
    return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // a_row))


def _check_claims(path: Path, columns: Sequence[str]) -> None:
    """Refuse what is small and claims to be huge.

    DuckDB reads the metadata: pyarrow's `RowGroupMetaData.column` ends the process on damaged ones.
    """
    if not columns:
        return
    chunks = duckdb.execute(
        "SELECT path_in_schema, total_uncompressed_size, total_compressed_size, num_values "
        "FROM parquet_metadata(?)",
        [str(path)],
    ).fetchall()
    most_values = _FREE_VALUES + _MOST_VALUES_PER_BYTE * path.stat().st_size
    for name, size, stored, num_values in chunks:
        column = name.split(", ")[0]
        if column not in columns:
            continue
        if size > _FREE_BYTES and size > _MOST_EXPANSION * max(1, stored):
            raise ValueError(
                f"{path}: {stored:,} bytes of the column {column!r} unpack to {size:,}; such a "
                "file is not read"
            )
        most_values -= num_values
    if most_values < 0:
        raise ValueError(
            f"{path} claims more values than a file of {path.stat().st_size:,} bytes can mean; "
            "such a file is not read"
        )


def _data_files(folder: Path, split: str | None) -> tuple[Path, ...]:
    """The Arrow files of a saved data set, in their order."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        if split not in splits:
            listed = ", ".join(splits)
            raise ValueError(f"the data set has the splits {listed}; choose one with --split")
        folder /= str(split)
    state = json.loads((folder / "state.json").read_text("utf-8"))
    if state.get("_indices_files"):
        raise ValueError(f"{folder} is a view of another data set: call flatten_indices() first")
    return tuple(folder / entry["filename"] for entry in state["_data_files"])
