"""Tables larger than memory: columns grow in flat files and become one record batch at the end.

An Arrow file of one record batch is what can be mapped as whole columns, but it cannot be written
piece by piece. So the pieces of each column are appended to a file for each of its buffers; those
files are then mapped, and the batch that is written is a view of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.arrow_file import list_parts, string_parts, write_batch


class TableSpool:
    """A table that is appended to batch by batch."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        """Start an empty table.

        Args:
            folder: where its temporary files go.
            name: keeps them apart from those of other tables.
            schema: columns without nulls: fixed width, large_string, or large_list of those.
        """
        self.num_rows = 0
        self.schema = schema
        self._columns = [_ColumnSpool(folder / f"{name}.{field.name}", field) for field in schema]

    def append(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch of this schema."""
        for column, array in zip(self._columns, batch.columns, strict=True):
            column.append(array)
        self.num_rows += batch.num_rows

    def write(self, path: Path) -> pa.RecordBatch:
        """Write the Arrow file and remove the temporary ones; returns the rows, mapped."""
        arrays = [column.finish(self.num_rows) for column in self._columns]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        write_batch(path, batch)
        for column in self._columns:
            column.remove()
        return batch


class _ColumnSpool:
    """One column: a file of values, and one of offsets where their lengths differ."""

    def __init__(self, stem: Path, field: pa.Field) -> None:
        self._type = field.type
        self._values = _BufferFile(stem.with_name(f"{stem.name}.values"))
        self._offsets: _BufferFile | None = None
        self._end = 0
        if pa.types.is_large_string(self._type) or pa.types.is_large_list(self._type):
            self._offsets = _BufferFile(stem.with_name(f"{stem.name}.offsets"))
            self._offsets.append(np.zeros(1, np.int64))

    def append(self, array: pa.Array) -> None:
        if self._offsets is None:
            self._values.append(fixed_width_values(array))
            return
        if pa.types.is_large_string(self._type):
            offsets, values = string_parts(array)
        else:
            offsets, values = list_parts(array)
            values = values[offsets[0] : offsets[-1]]
            offsets = offsets - offsets[0]
        self._values.append(values)
        self._offsets.append(offsets[1:] + self._end)
        self._end += int(offsets[-1])

    def finish(self, num_rows: int) -> pa.Array:
        values = self._values.map()
        if self._offsets is None:
            return pa.Array.from_buffers(self._type, num_rows, [None, values])
        offsets = self._offsets.map()
        if pa.types.is_large_string(self._type):
            return pa.Array.from_buffers(self._type, num_rows, [None, offsets, values])
        items = pa.Array.from_buffers(self._type.value_type, self._end, [None, values])
        return pa.Array.from_buffers(self._type, num_rows, [None, offsets], children=[items])

    def remove(self) -> None:
        self._values.path.unlink()
        if self._offsets is not None:
            self._offsets.path.unlink()


class _BufferFile:
    """One buffer of an Arrow array, growing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")

    def append(self, values: NDArray[np.generic]) -> None:
        self._file.write(np.ascontiguousarray(values).data)

    def map(self) -> pa.Buffer:
        self._file.close()
        if not self.path.stat().st_size:
            return pa.py_buffer(b"")
        with pa.memory_map(str(self.path)) as source:
            return source.read_buffer()


def fixed_width_values(array: pa.Array) -> NDArray[np.generic]:
    """The values of a column without nulls as numpy, in rows of bytes where they are binary."""
    if not pa.types.is_fixed_size_binary(array.type):
        return array.to_numpy(zero_copy_only=True)
    width = array.type.byte_width
    raw = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return raw[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
