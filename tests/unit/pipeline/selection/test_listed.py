"""Samples kept by a list of their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.pipeline.index import Index
from tessera.pipeline.index.dataset import open_dataset
from tessera.pipeline.index.select import Chosen, Criteria, choose
from tests.unit.pipeline.selection.conftest import add_column, url_of

KEYS = [3, 9, 64]
UIDS = [f"{row:016x}{row * 7 + 1:016x}" for row in range(96)]


def chosen(index: Index, path: Path, on: str, where: str = "") -> Chosen:
    return choose(
        open_dataset(index.directory),
        Criteria(listed=str(path), on=on, where=(where,) if where else ()),
    )


def test_a_text_file_of_keys(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    lines = [f"{row:09d}" for row in (*KEYS, 9, 500)]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    found = chosen(index, path, "key")
    assert found.rows[""].tolist() == KEYS
    assert found.steps[0].condition == "key in keys.txt (5 ids)"
    assert found.steps[0].num_dropped == 93
    assert chosen(index, path, "key", "score > 0.05").rows[""].tolist() == [9, 64]


def test_numbers_are_compared_as_they_are_written(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("2\n5\n")
    rows = chosen(index, path, "label").rows[""]
    assert rows.tolist() == [row for row in range(96) if row % 6 in (2, 5)]


def test_missing_values_are_in_no_list(index: Index, tmp_path: Path) -> None:
    """Row 0 has no URL, which hashes like an empty text."""
    path = tmp_path / "urls.parquet"
    pq.write_table(pa.table({"url": ["", None, url_of(4)], "other": [1, 2, 3]}), path)
    assert chosen(index, path, "url").rows[""].tolist() == [4]


def test_datacomps_pairs_of_numbers(index: Index, tmp_path: Path) -> None:
    add_column(index.directory, "uid", pa.array(UIDS, pa.large_string()))
    path = tmp_path / "dfn.npy"
    pairs = [(int(UIDS[row][:16], 16), int(UIDS[row][16:], 16)) for row in KEYS]
    np.save(path, np.array(pairs, np.dtype("u8,u8")))
    assert chosen(index, path, "uid").rows[""].tolist() == KEYS


@pytest.mark.parametrize(
    ("name", "content", "on", "message"),
    [
        ("ids.txt", b"1\n2\n", "key", "no 'key' of the samples is in .* first of 2 is '1'"),
        ("ids.txt", b"\n\n", "key", "is empty"),
        ("ids.txt", b"\xff\xfe1", "key", "no text in UTF-8"),
        ("ids.npy", b"000000001\n", "key", "no NumPy array"),
        ("ids.parquet", b"000000001\n", "key", "no parquet file"),
        ("ids.txt", b"0.5\n", "score", "'score' cannot be used"),
        ("ids.txt", b"0.5\n", "colour", "no column 'colour'"),
    ],
)
def test_what_is_no_list_is_refused(
    index: Index, tmp_path: Path, name: str, content: bytes, on: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        chosen(index, tmp_path / name, on)


def test_other_arrays_and_tables_are_refused(index: Index, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(4))
    with pytest.raises(ValueError, match="pairs of 64-bit numbers"):
        chosen(index, tmp_path / "rows.npy", "key")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match="no column 'key'; it has: 'id'"):
        chosen(index, tmp_path / "ids.parquet", "key")
    with pytest.raises(FileNotFoundError, match="no list"):
        chosen(index, tmp_path / "gone.txt", "key")
    with pytest.raises(ValueError, match="--listed"):
        Criteria(listed="ids.txt")


@pytest.mark.parametrize("how", ["join", "listed"])
def test_keys_kept_as_bytes_are_read_and_as_fractions_refused(
    index: Index, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "keys.parquet"
    keys = [f"{row:09d}".encode() for row in KEYS]

    def rows(column: pa.Array) -> list[int]:
        pq.write_table(pa.table({"key": column, "good": [1] * len(KEYS)}), path)
        criteria = Criteria(
            join=str(path) if how == "join" else "",
            listed=str(path) if how == "listed" else "",
            on="key",
            where=("good == 1",) if how == "join" else (),
        )
        return choose(open_dataset(index.directory), criteria).rows[""].tolist()

    assert rows(pa.array(keys, pa.binary())) == KEYS
    with pytest.raises(
        ValueError, match=r"column 'key' holds (?i:double), .*write the column as text"
    ):
        rows(pa.array([float(row) for row in KEYS]))
