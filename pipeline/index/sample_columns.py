"""Values kept beside a sample: fields of its json or of the parquet that img2dataset writes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa

from tessera.pipeline.index.arrow_tables import ParquetTable
from tessera.pipeline.index.foreign_tables import Row
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.storage import is_remote, open_binary

KEY_FIELD = "key"


def parquet_fields(location: str, options: ScanOptions) -> dict[str, dict[str, Any]]:
    """Fields of every key from the `NNNNN.parquet` beside `NNNNN.tar`.

    Returns:
        Key to field to value; empty where there is no such file, or it has none of the fields.

    Raises:
        OSError: the file is there but cannot be read.
    """
    if not options.fields or not location.endswith(".tar"):
        return {}
    try:
        with _as_file(location.removesuffix(".tar") + ".parquet") as path:
            return _fields_by_key(ParquetTable((path,)), list(options.fields))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise OSError(f"{location}: its parquet cannot be read ({error})") from error


@contextmanager
def _as_file(location: str) -> Iterator[Path]:
    """A local file, or a copy of a remote one that goes afterwards."""
    if not is_remote(location):
        yield Path(location)
        return
    with open_binary(location) as source, NamedTemporaryFile(suffix=".parquet") as copy:
        shutil.copyfileobj(source, copy)
        copy.flush()
        yield Path(copy.name)


def _fields_by_key(table: ParquetTable, names: list[str]) -> dict[str, dict[str, Any]]:
    """Values of the fields that the table has; a row that cannot be read has none."""
    wanted = [name for name in names if name in table.names]
    if KEY_FIELD not in table.names or not wanted:
        return {}
    rows = (row.values for row in table.rows([KEY_FIELD, *wanted]) if isinstance(row, Row))
    return {str(key): dict(zip(wanted, values, strict=True)) for key, *values in rows}


def field_values(
    options: ScanOptions, document: Mapping[str, Any], row: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The values of one sample's fields: from its json, else from its parquet row, else missing."""
    return tuple(
        _value(document.get(name, row.get(name)), kind) for name, kind in options.fields.items()
    )


def _value(value: Any, kind: pa.DataType) -> Any:
    """A value as the column holds it; what is missing or of another kind is empty or NaN."""
    if kind == pa.float64():
        try:
            return float(value)
        except (TypeError, ValueError):
            return math.nan
    if value is None:
        return ""
    # JSON can spell half of a surrogate pair, which no UTF-8 can hold.
    return str(value).encode("utf-8", "replace").decode("utf-8")
