"""Repacked shards hold the same samples in less room, in one order, and still count as done."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.download_shards import caption_of, make_download, picture_of, write_shard
from tools.download.finished import finished_shards, is_complete
from tools.download.repack import repack


@pytest.fixture
def download(tmp_path: Path) -> Path:
    make_download(tmp_path)
    for number in range(5):
        write_shard(tmp_path, number)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert member.name not in found
                found[member.name] = file.read()
    return found


def test_samples_stay_and_json_goes(download: Path) -> None:
    before = contents(download)
    result = repack(download)
    after = contents(download)
    assert after == {name: data for name, data in before.items() if not name.endswith(".json")}
    ids = [int(name[:9]) for name in after if name.endswith(".jpg")]
    assert all(after[f"{i:09d}.txt"] == caption_of(i).encode() for i in ids)
    assert all(after[f"{i:09d}.jpg"] == picture_of(i) for i in ids)
    assert (result.num_shards, result.num_before) == (5, 0)
    assert result.bytes_after < result.bytes_before - 3000 * len(ids)
    assert is_complete(download)


def test_members_are_plain_sorted_and_without_time(download: Path) -> None:
    repack(download)
    for path in (download / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert [m.name for m in members] == sorted(m.name for m in members)
        assert all(m.mtime == 0 and not m.pax_headers for m in members)


def test_the_same_samples_give_the_same_bytes(download: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_download(other)
    for number in reversed(range(5)):
        write_shard(other, number)
    repack(download)
    repack(other)
    for path in (download / "shards").glob("*.tar"):
        assert path.read_bytes() == (other / "shards" / path.name).read_bytes()


def test_a_second_call_finds_nothing_to_do(download: Path) -> None:
    repack(download)
    times = {path: path.stat().st_mtime_ns for path in (download / "shards").glob("*.tar")}
    again = repack(download)
    assert (again.num_shards, again.num_before) == (0, 5)
    assert times == {path: path.stat().st_mtime_ns for path in (download / "shards").glob("*.tar")}


def test_what_a_kill_left_goes_and_broken_shards_stay(download: Path) -> None:
    left = download / "shards" / "00003.tar.repacking"
    left.write_bytes(b"half")
    write_shard(download, 1, "a caption differs")
    before = (download / "shards" / "00001.tar").read_bytes()
    assert repack(download).num_shards == 4
    assert not left.exists()
    assert (download / "shards" / "00001.tar").read_bytes() == before
    assert sorted(finished_shards(download)) == [0, 2, 3, 4]


def test_remote_shards_are_refused(tmp_path: Path) -> None:
    make_download(tmp_path, shards="memory://bucket/shards")
    with pytest.raises(ValueError, match="local shards only"):
        repack(tmp_path)
