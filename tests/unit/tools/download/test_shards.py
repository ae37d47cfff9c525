"""Only whole, consistent shards count as done; the rest is told apart and cleared away."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tessera.tools.download.job import Job
from tessera.tools.download.shards import ShardBook, shard_file
from tests.download_shards import caption_of, make_download, write_shard

FAULTS = {
    "a row is missing": "its metadata has 9 rows, not its 10",
    "a sample is missing": "6 pictures in its tar, 7 successes",
    "the tar is cut": "TarCutShort",
    "a caption differs": "captions in its tar",
    "statistics are empty": "JSON",
    "statistics disagree": "statistics say 10 rows and 9 successes",
}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    make_download(tmp_path)
    return tmp_path


def looked_at(download: Path) -> ShardBook:
    book = ShardBook(download)
    book.refresh()
    return book


def test_whole_shards_are_done_with_their_counts(download: Path) -> None:
    for number in range(5):
        assert not looked_at(download).complete
        write_shard(download, number)
    book = looked_at(download)
    assert book.complete
    states = book.finished
    assert sum(state.num_rows for state in states.values()) == book.num_rows == 38
    last = states[4]  # rows 0, 1 and 2
    assert (last.num_rows, last.num_successes, last.failures) == (3, 3, {})
    assert states[0].failures == {"not_found": 1, "timeout": 1, "damaged_image": 1}
    assert (states[0].start_time, states[0].end_time) == (5.0, 9.0)
    rows = {row["row_id"]: row["caption"] for row in book.metadata().to_table().to_pylist()}
    assert rows == {n: caption_of(n) for n in range(38)}


@pytest.mark.parametrize(("fault", "problem"), FAULTS.items())
def test_a_faulty_shard_is_set_aside_and_done_again(
    download: Path, fault: str, problem: str
) -> None:
    write_shard(download, 0)
    for time in range(2):
        write_shard(download, 1, fault)
        if fault == "statistics disagree":
            path = download / "shards/00001_stats.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"successes": 9}))
        book = looked_at(download)
        assert list(book.finished) == [0]
        (moved,) = book.set_aside()
        assert moved.shard_id == 1
        assert problem in str(moved.problem)
        names = {path.name for path in (download / "shards").iterdir()}
        assert names == {shard_file(0, end) for end in (".tar", ".parquet", "_stats.json")}
        kept = {f"00001-{n}{end}" for n in range(time + 1) for end in (".tar", ".parquet")}
        assert {path.name for path in (download / "quarantine").iterdir()} == kept
    write_shard(download, 1)
    assert list(looked_at(download).finished) == [0, 1]


def test_remains_of_unfinished_shards_go_and_foreign_files_stay(download: Path) -> None:
    write_shard(download, 0)
    write_shard(download, 3, "no statistics")
    shards = download / "shards"
    (shards / "_tmp").mkdir()
    for name in ("00004.parquet", "notes.txt", "_tmp/3.feather"):
        (shards / name).touch()
    assert looked_at(download).set_aside() == []
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
    (download / "shards" / "00002_stats.json").unlink()
    assert list(looked_at(download).finished) == [0]
    record = download / "verified.jsonl"  # torn by a kill
    record.write_bytes(record.read_bytes()[:-40])
    write_shard(download, 2)
    assert {state.shard_id for state in ShardBook(download).refresh()} == {1, 2}
    assert ShardBook(download).refresh() == []


def test_what_the_first_edition_left_is_read_and_a_damaged_job_is_named(download: Path) -> None:
    write_shard(download, 0)
    with tarfile.open(download / "shards/00000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("000000030.json"))  # which it stored with each picture
    path = download / "job.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["per_host"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert list(looked_at(download).finished) == [0]
    for text in ("[]", "{", '{"table": "t"}', json.dumps(values | {"thread": 3})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="not the job of a download"):
            Job.load(download)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no download was begun"):
        Job.load(download)
