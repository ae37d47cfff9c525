"""Lists of the samples to keep, as filters publish them: one id for each sample that passed.

| file | ids |
|---|---|
| `.npy` | DataComp's lists, as of Data Filtering Networks: pairs of 64-bit numbers, 32 hex digits |
| `.parquet` | a column with the name of the index's |
| any other | text, one id a line |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from tessera.pipeline.index.arrow_tables import id_batches

_IDS_AT_ONCE = 1 << 16
_PAIR = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class IdList:
    """The ids of a file."""

    path: Path
    """The file."""
    batches: Iterator[pa.Array]
    """Ids as texts or numbers, some at a time, none of them null; can be read once."""


def read_ids(path: Path, column: str) -> IdList:
    """Open a list of ids.

    Args:
        path: the file.
        column: of the index that ids are compared with; the same in a parquet file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no ids; also while `batches` is read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no list {path}")
    batches = _batches(path, column)
    first = next(batches, None)
    if first is None:
        raise ValueError(f"the list {path} is empty")
    return IdList(path=path, batches=chain([first], batches))


def _batches(path: Path, column: str) -> Iterator[pa.Array]:
    """Ids as texts or numbers, some at a time, none of them empty or null."""
    if path.suffix == ".npy":
        return _numpy_batches(path)
    if path.suffix == ".parquet":
        return _parquet_batches(path, column)
    return _text_batches(path)


def _numpy_batches(path: Path) -> Iterator[pa.Array]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no NumPy array ({error})") from error
    fields = array.dtype.fields or {}
    if len(fields) != _PAIR or any(kind.kind != "u" for kind, *_ in fields.values()):
        raise ValueError(
            f"{path} holds {array.dtype}, and DataComp's lists pairs of 64-bit numbers: write the "
            "ids as text, one a line"
        )
    for start in range(0, len(array), _IDS_AT_ONCE):
        pairs = array[start : start + _IDS_AT_ONCE].tolist()
        yield pa.array([f"{high:016x}{low:016x}" for high, low in pairs], pa.large_string())


def _parquet_batches(path: Path, column: str) -> Iterator[pa.Array]:
    for ids in map(pa.Array.drop_null, id_batches(path, column)):
        if len(ids):
            yield ids


def _text_batches(path: Path) -> Iterator[pa.Array]:
    with path.open(encoding="utf-8-sig") as file:
        lines: list[str] = []
        try:
            for line in file:
                lines += [line.strip()] if line.strip() else []
                if len(lines) == _IDS_AT_ONCE:
                    yield pa.array(lines, pa.large_string())
                    lines = []
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8 ({error})") from error
        if lines:
            yield pa.array(lines, pa.large_string())
