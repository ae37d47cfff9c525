"""Arrow IPC files of one record batch, written safely and read as views of a memory map."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_OFFSETS_AT_ONCE = 1 << 20


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write one record batch and see it onto the disk.

    One batch, because only then is a whole column one piece of memory when it is mapped.
    """
    with path.open("wb") as file:
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


class TableWriter:
    """A table of any size that is appended to, and becomes one record batch at the end.

    Each buffer of its columns grows in a file; the batch that is written is a view of these files.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        """Start an empty table.

        Args:
            folder: where the temporary files go.
            name: keeps them apart from those of other tables.
            schema: columns without nulls: fixed width, large_string, or large_list of those.
        """
        self.schema = schema
        self.num_rows = 0
        self._ends = [0] * len(schema)
        self._files: list[tuple[BinaryIO, BinaryIO | None]] = []
        for field in schema:
            stem = folder / f"{name}.{field.name}"
            offsets = None
            if _has_offsets(field.type):
                offsets = stem.with_name(f"{stem.name}.offsets").open("wb")
                offsets.write(bytes(8))
            self._files.append((stem.with_name(f"{stem.name}.values").open("wb"), offsets))

    def append(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch of this schema."""
        for place, (column, files) in enumerate(zip(batch.columns, self._files, strict=True)):
            values, offsets = files
            if offsets is None:
                values.write(np.ascontiguousarray(_fixed_width(column)).data)
                continue
            is_text = pa.types.is_large_string(column.type)
            bounds, content = string_parts(column) if is_text else list_parts(column)
            values.write(np.ascontiguousarray(content[: bounds[-1]][bounds[0] :]).data)
            offsets.write((bounds[1:] + (self._ends[place] - bounds[0])).data)
            self._ends[place] += int(bounds[-1] - bounds[0])
        self.num_rows += batch.num_rows

    def write(self, path: Path) -> pa.RecordBatch:
        """Write the Arrow file and remove the temporary ones; returns the rows, mapped."""
        arrays = [
            self._array(field.type, place, *files)
            for place, (field, files) in enumerate(zip(self.schema, self._files, strict=True))
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        write_batch(path, batch)
        for file in (file for pair in self._files for file in pair if file):
            Path(file.name).unlink()
        return batch

    def _array(
        self, kind: pa.DataType, place: int, values: BinaryIO, offsets: BinaryIO | None
    ) -> pa.Array:
        content = _mapped(values)
        if offsets is None:
            return pa.Array.from_buffers(kind, self.num_rows, [None, content])
        bounds = _mapped(offsets)
        if pa.types.is_large_string(kind):
            return pa.Array.from_buffers(kind, self.num_rows, [None, bounds, content])
        items = pa.Array.from_buffers(kind.value_type, self._ends[place], [None, content])
        return pa.Array.from_buffers(kind, self.num_rows, [None, bounds], children=[items])


def map_batch(
    path: Path, schema: pa.Schema | None = None, *, missing: Mapping[str, int] | None = None
) -> pa.RecordBatch:
    """Memory-map a file of one record batch; nothing is read but its footer and its offsets.

    Files of an earlier edition may lack the last columns of `schema`: `missing` has the value that
    stands in for each of these.

    Offsets that point outside of a column would have whoever uses it read foreign memory, so those
    of texts and lists are looked at: 8 bytes a row, none of which stays in private memory. Columns
    of a kind that only the file knows (no `schema` given) are validated wholly.

    Raises:
        ValueError: the file is missing, damaged, or has other columns than `schema`, if given.
    """
    hint = "make the index again with `python tools/index_shards.py SHARDS --out DIR`"
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            num_batches = reader.num_record_batches
            batch = reader.get_batch(0) if num_batches == 1 else None
            if batch is not None:
                batch.validate(full=schema is None)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing from the index; {hint}") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}); {hint}") from error
    if batch is None:
        raise ValueError(f"{path} holds {num_batches} record batches instead of one; {hint}")
    for name, value in (missing or {}).items():
        if schema is not None and name not in batch.schema.names:
            column = pa.array(np.full(batch.num_rows, value), schema.field(name).type)
            batch = batch.append_column(schema.field(name), column)
    if schema is not None and not batch.schema.equals(schema):
        found, wanted = (", ".join(each.names) for each in (batch.schema, schema))
        raise ValueError(f"{path} has columns {found}, not {wanted}; {hint}")
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"{path} is damaged (nulls in {field.name}); {hint}")
        if not _offsets_ascend(column):
            raise ValueError(f"{path} is damaged (offsets of {field.name}); {hint}")
    return batch


def column_view(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """A fixed-width column as a read-only numpy view of the mapped file."""
    return batch.column(name).to_numpy(zero_copy_only=True)


def string_parts(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Offsets [K+1] (starting at 0) and bytes of a large_string column without nulls."""
    buffers = array.buffers()
    count = len(array) + 1
    offsets = np.frombuffer(buffers[1], dtype=np.int64)[array.offset : array.offset + count]
    first, last = int(offsets[0]), int(offsets[-1])
    raw = np.frombuffer(buffers[2], dtype=np.uint8) if buffers[2] else np.empty(0, np.uint8)
    return offsets - first, raw[first:last]


def list_parts(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Offsets [K+1] into, and values of, a large_list column; both are views."""
    offsets = array.offsets.to_numpy(zero_copy_only=True)
    return offsets, array.values.to_numpy(zero_copy_only=True)


def lengths(offsets: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Differences of neighbours, some at a time."""
    starts = range(0, len(offsets) - 1, _OFFSETS_AT_ONCE)
    return (np.diff(offsets[start : start + _OFFSETS_AT_ONCE + 1]) for start in starts)


def _offsets_ascend(array: pa.Array) -> bool:
    """Whether no text or list ends before it begins; `validate` has held the ends to the values."""
    if not _has_offsets(array.type) or not len(array):
        return True
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, 8 * array.offset)
    return all((each >= 0).all() for each in lengths(offsets))


def _has_offsets(kind: pa.DataType) -> bool:
    return pa.types.is_large_string(kind) or pa.types.is_large_list(kind)


def _fixed_width(array: pa.Array) -> NDArray[np.generic]:
    """The values of a column without nulls; in rows of bytes where they are binary."""
    if not pa.types.is_fixed_size_binary(array.type):
        return array.to_numpy(zero_copy_only=True)
    width = array.type.byte_width
    raw = np.frombuffer(array.buffers()[1], np.uint8)
    return raw[array.offset * width : (array.offset + len(array)) * width]


def _mapped(file: BinaryIO) -> pa.Buffer:
    """What was written to a temporary file."""
    file.close()
    if not Path(file.name).stat().st_size:
        return pa.py_buffer(b"")
    with pa.memory_map(file.name) as source:
        return source.read_buffer()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
