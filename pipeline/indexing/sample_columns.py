"""Values kept beside a sample: fields of its json or of the parquet that img2dataset writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.indexing.options import ScanOptions
from pipeline.storage import open_binary

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
        with open_binary(location.removesuffix(".tar") + ".parquet") as file:
            content = pa.BufferReader(file.read())
        table = pq.ParquetFile(content)
        known = set(table.schema_arrow.names)
        wanted = [name for name in options.fields if name in known]
        if KEY_FIELD not in known or not wanted:
            return {}
        rows = _read_rows(table, [KEY_FIELD, *wanted])
    except FileNotFoundError:
        return {}
    except pa.ArrowException as error:
        raise OSError(f"{location}: its parquet cannot be read ({error})") from error
    return {str(row.pop(KEY_FIELD)): row for row in rows}


def _read_rows(table: pq.ParquetFile, names: list[str]) -> list[dict[str, Any]]:
    """Rows of some columns; dates and times as text, since Python's end with the year 9999."""
    found = table.read(names)
    for place, field in enumerate(found.schema):
        if pa.types.is_temporal(field.type):
            found = found.set_column(place, field.name, found.column(place).cast(pa.string()))
    return found.to_pylist()


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
