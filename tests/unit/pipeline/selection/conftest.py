"""An index with optional columns, which tests may spoil."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tessera.pipeline.index import Index, open_index
from tessera.pipeline.index.arrow_file import write_batch


def add_column(index_dir: Path, name: str, values: pa.Array) -> None:
    """One more column of an index, as tools/index_shards.py stores it."""
    (index_dir / "columns").mkdir(exist_ok=True)
    schema = pa.schema([pa.field("value", values.type, nullable=False)])
    batch = pa.RecordBatch.from_arrays([values], schema=schema)
    write_batch(index_dir / "columns" / f"{name}.arrow", batch)


def url_of(row: int) -> str:
    """Row 0 has none; every fifth row is of another host."""
    if row == 0:
        return ""
    host = "WWW.Five.example:8080" if row % 5 == 0 else f"img{row % 3}.example.org"
    return f"https://{host}/{row}.jpg?size=large"


@pytest.fixture
def index(coloured_index: Path, tmp_path: Path) -> Index:
    """96 samples with two captions each, and four columns.

    Every sample of the first ten has the sha256 of row 0; scores are row / 100, missing in row 7;
    dhash counts in steps of 2 (rows 2k and 2k + 1 are equal).
    """
    shutil.copytree(coloured_index.parent, tmp_path / "copy")
    index_dir = tmp_path / "copy" / "index"
    rows = np.arange(96)
    hashes = [hashlib.sha256(b"%d" % (0 if row < 10 else row)).digest() for row in rows]
    scores = np.where(rows == 7, np.nan, rows / 100)
    add_column(index_dir, "url", pa.array(map(url_of, range(96)), pa.large_string()))
    add_column(index_dir, "sha256", pa.array(hashes, pa.binary(32)))
    add_column(index_dir, "score", pa.array(scores))
    add_column(index_dir, "dhash", pa.array((rows // 2 * 2**32).astype(np.uint64)))
    return open_index(index_dir)
