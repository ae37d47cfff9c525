"""Arrow IPC files of one record batch, written safely and read as views of a memory map."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def _offsets_ascend(array: pa.Array) -> bool:
    """Whether no text or list ends before it begins; `validate` has held the ends to the values."""
    if not (pa.types.is_large_string(array.type) or pa.types.is_large_list(array.type)):
        return True
    if not len(array):
        return True
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, 8 * array.offset)
    starts = range(0, len(array), _OFFSETS_AT_ONCE)
    return all((np.diff(offsets[n : n + _OFFSETS_AT_ONCE + 1]) >= 0).all() for n in starts)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
