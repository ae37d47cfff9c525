"""A selection belongs to one state of one index, and a reference to data names just one thing."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tessera.pipeline.index import Index
from tessera.pipeline.index.dataset import Dataset, num_shared, open_dataset, parse_reference
from tessera.pipeline.index.selections import (
    list_selections,
    open_selection,
    remove_selection,
    write_selection,
)

WORDS = {"command": ["--out", "odd", "--where", "width > 3"]}


def path_of(index: Index, name: str) -> Path:
    return index.directory / "selections" / f"{name}.arrow"


def with_other_fingerprint(index: Index) -> None:
    """As after the shards were indexed anew and had changed."""
    manifest = index.directory / "index.json"
    text = manifest.read_text()
    assert index.fingerprint in text
    manifest.write_text(text.replace(index.fingerprint, "f" * 64))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(rows=st.sets(st.integers(0, 95), min_size=1))
def test_rows_come_back_as_they_were(index: Index, rows: set[int]) -> None:
    written = write_selection(index, "some", np.array(sorted(rows)), WORDS)
    opened = open_dataset(f"{index.directory}@some")
    assert opened.rows is not None
    assert opened.rows.dtype == np.uint32
    assert not opened.rows.flags.writeable
    assert opened.rows.tolist() == opened.sample_ids(0, 96).tolist() == sorted(rows)
    assert opened.num_samples == len(rows)
    assert opened.selection_fingerprint == written.fingerprint
    assert (opened.of_samples(index.width) == index.width[sorted(rows)]).all()


def test_the_same_selection_is_the_same_file(index: Index) -> None:
    first = write_selection(index, "a", np.arange(1, 96, 2), WORDS)
    bytes_before = path_of(index, "a").read_bytes()
    again = write_selection(index, "a", np.arange(1, 96, 2), WORDS)
    assert path_of(index, "a").read_bytes() == bytes_before
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != write_selection(index, "b", np.arange(95), WORDS).fingerprint
    assert list_selections(index) == ["a", "b"]
    assert [
        path.name for path in path_of(index, "a").parent.iterdir() if "partial" in path.name
    ] == []


def test_parts_of_a_data_set_are_taken_in_order(index: Index) -> None:
    write_selection(index, "odd", np.arange(1, 96, 2), WORDS)
    dataset = open_dataset(f"{index.directory}@odd")
    parts = [dataset.sample_ids(start, start + 10).tolist() for start in range(0, 60, 10)]
    assert list(chain.from_iterable(parts)) == list(range(1, 96, 2))
    assert parts[-1] == []
    whole = open_dataset(index.directory)
    assert whole.sample_ids(90, 100).tolist() == list(range(90, 96))
    assert whole.sample_ids(100, 110).tolist() == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "keeps no sample"),
        ([3, 2], "do not ascend"),
        ([2, 2], "do not ascend"),
        ([0, 96], "row 96"),
    ],
)
def test_rows_that_are_no_selection_are_not_stored(
    index: Index, rows: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_selection(index, "bad", np.array(rows, dtype=np.int64), WORDS)
    assert list_selections(index) == []


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "a b", "a@b", "-x"])
def test_names_that_cannot_be_named_are_refused(index: Index, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        write_selection(index, name, np.arange(3), WORDS)


def test_a_rebuilt_index_refuses_it_and_names_the_command(index: Index) -> None:
    write_selection(index, "odd", np.arange(1, 96, 2), WORDS)
    with_other_fingerprint(index)
    command = f"python tools/select_samples.py {index.directory} --out odd --where 'width > 3'"
    with pytest.raises(ValueError, match="is ffffffffffffffff now: make it again") as caught:
        open_dataset(f"{index.directory}@odd")
    assert command in str(caught.value)


def test_the_command_names_the_selection_that_it_was_chosen_from(index: Index) -> None:
    base = {"base": {"name": "clean", "fingerprint": "0"}}
    write_selection(index, "odd", np.arange(3), WORDS | base)
    with_other_fingerprint(index)
    with pytest.raises(ValueError, match=f"select_samples.py {index.directory}@clean --out odd"):
        open_dataset(f"{index.directory}@odd")


def test_a_changed_file_is_refused(index: Index) -> None:
    write_selection(index, "odd", np.arange(1, 96, 2, dtype=np.uint32), WORDS)
    path = path_of(index, "odd")
    content = path.read_bytes()
    stored = np.arange(1, 96, 2, dtype=np.uint32).tobytes()
    assert content.count(stored) == 1
    other = np.arange(0, 95, 2, dtype=np.uint32).tobytes()
    path.write_bytes(content.replace(stored, other))
    with pytest.raises(ValueError, match="not those that were stored"):
        open_dataset(f"{index.directory}@odd")
    for damaged in (content[: len(content) // 2], b"", b"no arrow at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"odd\.arrow cannot be used"):
            open_dataset(f"{index.directory}@odd")
    shutil.copy(index.directory / "columns" / "score.arrow", path)
    with pytest.raises(ValueError, match="no selection"):
        open_dataset(f"{index.directory}@odd")


def test_what_is_not_there_is_named_with_what_is(index: Index) -> None:
    write_selection(index, "odd", np.arange(3), WORDS)
    with pytest.raises(FileNotFoundError, match="it has: odd") as caught:
        open_dataset(f"{index.directory}@even")
    assert "tools/select_samples.py" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"tools/index_shards\.py"):
        open_dataset("nowhere/at/all@train")
    with pytest.raises(FileNotFoundError, match="it has: odd"):
        remove_selection(index, "even")
    remove_selection(index, "odd")
    with pytest.raises(FileNotFoundError, match="it has: none"):
        open_selection(index, "odd")


@pytest.mark.parametrize(
    ("text", "index_dir", "selection"),
    [
        ("data/cc12m", "data/cc12m", None),
        ("data/cc12m@train", "data/cc12m", "train"),
        ("data/me@home/cc12m", "data/me@home/cc12m", None),
        ("data/me@home/cc12m@train", "data/me@home/cc12m", "train"),
        ("data/cc12m@train/", "data/cc12m@train", None),
        ("data/cc12m/@train", "data/cc12m", "train"),
        ("a@b@c", "a@b", "c"),
    ],
)
def test_references(text: str, index_dir: str, selection: str | None) -> None:
    parsed = parse_reference(text)
    assert (parsed.index_dir.as_posix(), parsed.selection) == (index_dir, selection)


@pytest.mark.parametrize("text", ["@train", "data/cc12m@"])
def test_half_a_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="INDEX@SELECTION"):
        parse_reference(text)


def test_a_folder_whose_name_holds_the_sign_still_opens(index: Index) -> None:
    folder = index.directory.with_name("me@home")
    index.directory.rename(folder)
    write_selection(open_dataset(folder).index, "odd", np.arange(1, 96, 2), WORDS)
    assert open_dataset(str(folder)).selection is None
    assert open_dataset(f"{folder}@odd").num_samples == 48


def test_two_readings_are_refused_with_both_ways_out(index: Index) -> None:
    write_selection(index, "odd", np.arange(3), WORDS)
    twin = f"{index.directory}@odd"
    shutil.copytree(index.directory, twin)
    with pytest.raises(ValueError, match=r"write .*/ for the folder or .*/@odd for the selection"):
        open_dataset(twin)
    assert open_dataset(f"{twin}/").num_samples == 96
    assert open_dataset(f"{index.directory}/@odd").num_samples == 3


def test_shared_samples_are_counted(index: Index, coloured_index: Path) -> None:
    def selected(name: str, rows: range) -> Dataset:
        write_selection(index, name, np.array(rows), WORDS)
        return open_dataset(f"{index.directory}@{name}")

    whole, low, high = (
        open_dataset(index.directory),
        selected("a", range(50)),
        selected("b", range(40, 96)),
    )
    assert num_shared(low, high) == num_shared(high, low) == 10
    assert num_shared(whole, low) == num_shared(low, whole) == 50
    assert num_shared(whole, whole) == 96
    assert num_shared(selected("c", range(5)), high) == 0
    assert num_shared(low, open_dataset(coloured_index)) == 50, "a copy is the same index"
    with_other_fingerprint(index)
    assert num_shared(low, open_dataset(index.directory)) == 0
