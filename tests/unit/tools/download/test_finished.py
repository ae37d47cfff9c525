"""Only whole, consistent shards count as done; the rest is told apart and cleared away."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tessera.tools.download.job import Job
from tessera.tools.download.shards import ShardBook, shard_file
from tests.download_shards import caption_of, make_download, write_shard

FAULTS = (
    "a row is missing",
    "a sample is missing",
    "the tar is cut",
    "a caption differs",
    "statistics are empty",
)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    make_download(tmp_path)
    return tmp_path


def test_whole_shards_are_done_with_their_counts(download: Path) -> None:
    book = ShardBook(download)
    for number in range(5):
        book.refresh()
        assert not book.complete
        write_shard(download, number)
    book.refresh()
    assert book.complete
    states = book.finished
    assert sum(state.num_rows for state in states.values()) == 38
    last = states[4]  # rows 0, 1 and 2
    assert (last.num_rows, last.num_successes, last.failures) == (3, 3, {})
    assert states[0].failures == {"not_found": 1, "timeout": 1, "damaged_image": 1}
    assert (states[0].start_time, states[0].end_time) == (5.0, 9.0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_shard_is_not_done_and_is_done_again(download: Path, fault: str) -> None:
    write_shard(download, 0)
    write_shard(download, 1, fault)
    book = ShardBook(download)
    book.refresh()
    assert list(book.finished) == [0]
    assert list(book.broken) == [1]
    assert [state.shard_id for state in book.set_aside()] == [1]
    names = {path.name for path in (download / "shards").iterdir()}
    assert names == {shard_file(0, end) for end in (".tar", ".parquet", "_stats.json")}
    kept = {path.name for path in (download / "quarantine").iterdir()}
    assert kept == {"00001-0.tar", "00001-0.parquet"}
    write_shard(download, 1)
    book.refresh()
    assert list(book.finished) == [0, 1]


def test_quarantine_keeps_every_try(download: Path) -> None:
    for _ in range(2):
        write_shard(download, 2, "the tar is cut")
        book = ShardBook(download)
        book.refresh()
        book.set_aside()
    names = sorted(path.name for path in (download / "quarantine").glob("*.tar"))
    assert names == ["00002-0.tar", "00002-1.tar"]


def test_remains_of_unfinished_shards_go_and_foreign_files_stay(download: Path) -> None:
    write_shard(download, 0)
    write_shard(download, 3, "no statistics")
    shards = download / "shards"
    (shards / "00004.parquet").touch()
    (shards / "notes.txt").touch()
    (shards / "_tmp").mkdir()
    (shards / "_tmp" / "3.feather").touch()
    book = ShardBook(download)
    book.refresh()
    assert not book.broken
    assert book.set_aside() == []
    names = {path.name for path in shards.iterdir()}
    assert names == {"00000.tar", "00000.parquet", "00000_stats.json", "notes.txt"}


def test_a_check_is_repeated_only_for_what_changed(download: Path) -> None:
    for number in range(3):
        write_shard(download, number)
    assert len(ShardBook(download).refresh()) == 3
    book = ShardBook(download)  # as in the next process
    assert book.refresh() == []
    assert len(book.finished) == 3
    write_shard(download, 1, "the tar is cut")
    assert [state.shard_id for state in book.refresh()] == [1]
    assert list(book.broken) == [1]
    (download / "shards" / "00002_stats.json").unlink()
    book.refresh()
    assert list(book.finished) == [0]


def test_a_torn_record_of_checks_costs_only_a_check(download: Path) -> None:
    write_shard(download, 0)
    write_shard(download, 1)
    ShardBook(download).refresh()
    record = download / "verified.jsonl"
    record.write_bytes(record.read_bytes()[:-40])
    write_shard(download, 2)
    book = ShardBook(download)
    assert {state.shard_id for state in book.refresh()} == {1, 2}
    assert ShardBook(download).refresh() == []


def test_outcomes_name_every_row_once(download: Path) -> None:
    for number in range(5):
        write_shard(download, number)
    write_shard(download, 2, "the tar is cut")
    book = ShardBook(download)
    book.refresh()
    rows = book.metadata().to_table().to_pylist()
    in_shard_2 = set(range(38 - 25, 38 - 20))
    assert sorted(row["row_id"] for row in rows) == sorted(set(range(38)) - in_shard_2)
    assert all(row["caption"] == caption_of(row["row_id"]) for row in rows)


def test_a_folder_without_a_download_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no download was begun"):
        Job.load(tmp_path)


def test_statistics_that_disagree_are_named(download: Path) -> None:
    write_shard(download, 0)
    path = download / "shards" / "00000_stats.json"
    stats = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stats | {"successes": 9}), encoding="utf-8")
    book = ShardBook(download)
    book.refresh()
    assert "statistics say 10 rows and 9 successes" in book.broken[0]


def test_a_job_of_the_first_edition_is_read_and_a_damaged_one_is_named(download: Path) -> None:
    path = download / "job.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["per_host"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert Job.load(download).samples_per_shard == 10
    for text in ("[]", "{", '{"table": "t"}', json.dumps(values | {"thread": 3})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="not the job of a download"):
            Job.load(download)


def test_a_tar_with_json_members_as_the_first_edition_wrote_them_is_whole(download: Path) -> None:
    write_shard(download, 0)
    with tarfile.open(download / "shards/00000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("000000030.json"))
    book = ShardBook(download)
    book.refresh()
    assert list(book.finished) == [0]
