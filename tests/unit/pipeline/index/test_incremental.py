"""Indexes that are made again: what did not change is not read, and nothing differs from new."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tessera.pipeline.index import Index, IndexReport, ScanOptions, build_index, open_index
from tessera.pipeline.reader import ShardReader

Sample = tuple[str, str, int]
"""Key, caption, grey level."""


def jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40 + level % 9, 32), (level, level, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def shard_bytes(samples: Sequence[Sample], extra: Sequence[tuple[str, bytes]] = ()) -> bytes:
    buffer = io.BytesIO()
    members = [
        member
        for key, text, level in samples
        for member in ((f"{key}.jpg", jpeg(level)), (f"{key}.txt", text.encode()))
    ]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (*members, *extra):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def numbered(first: int, count: int) -> list[Sample]:
    return [(f"{n:05d}", f"picture number {n}", n % 200) for n in range(first, first + count)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of three shards with 4 samples each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.tar").write_bytes(shard_bytes(numbered(4 * number, 4)))
    return folder


def build(shards: Path, out: Path, options: ScanOptions | None = None) -> IndexReport:
    return build_index(sorted(shards.glob("*.tar")), out, options=options or ScanOptions())


def content(index_dir: Path) -> dict[str, str]:
    """A digest of every table of an index."""
    return {
        path.relative_to(index_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(index_dir.rglob("*.arrow"))
    }


def test_a_damaged_scan_is_not_used_again(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(shards, out)
    (scan, *_) = sorted((out / "scans").iterdir())
    damaged = bytearray(scan.read_bytes())
    for place in range(200, len(damaged), 97):
        damaged[place] ^= 1 << place % 8
    scan.write_bytes(damaged)
    (shards / "2.tar").write_bytes(shard_bytes(numbered(100, 4)))
    build(shards, out)
    assert_as_new(shards, out)


def assert_as_new(shards: Path, out: Path, options: ScanOptions | None = None) -> None:
    fresh = out.with_name("fresh")
    build_index(sorted(shards.glob("*.tar")), fresh, options=options or ScanOptions(), rebuild=True)
    assert content(out) == content(fresh)
    assert open_index(out).fingerprint == open_index(fresh).fingerprint


def test_nothing_is_read_again_when_nothing_changed(shards: Path, tmp_path: Path) -> None:
    first = build(shards, tmp_path / "index")
    again = build(shards, tmp_path / "index")
    assert (first.num_scanned_shards, again.num_scanned_shards) == (3, 0)
    assert first.fingerprint == again.fingerprint
    assert first.summary()["num_samples"] == again.summary()["num_samples"] == 12
    assert_as_new(shards, tmp_path / "index")


def test_added_changed_and_vanished_shards(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(shards, out)
    (shards / "0b.tar").write_bytes(shard_bytes(numbered(100, 2)))
    (shards / "1.tar").write_bytes(shard_bytes(numbered(200, 5)))
    (shards / "2.tar").unlink()
    report = build(shards, out)
    assert report.num_scanned_shards == 2
    assert report.num_samples == 4 + 2 + 5
    assert_as_new(shards, out)


def test_touched_shard_with_the_same_content_is_not_read(shards: Path, tmp_path: Path) -> None:
    build(shards, tmp_path / "index")
    os.utime(shards / "1.tar", (1, 1))
    assert build(shards, tmp_path / "index").num_scanned_shards == 0


def test_other_options_read_everything(shards: Path, tmp_path: Path) -> None:
    build(shards, tmp_path / "index")
    options = ScanOptions(sha256=True)
    assert build(shards, tmp_path / "index", options).num_scanned_shards == 3
    assert build(shards, tmp_path / "index", options).num_scanned_shards == 0
    assert_as_new(shards, tmp_path / "index", options)


def test_repeated_key_comes_back_when_the_first_one_vanishes(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    (shards / "1.tar").write_bytes(shard_bytes([*numbered(2, 3), *numbered(50, 1)]))
    report = build(shards, out)
    assert report.rejections == {"duplicate_key": 2}
    (shards / "0.tar").unlink()
    report = build(shards, out)
    assert report.rejections == {}
    assert open_index(out).keys(np.arange(4)) == ["00002", "00003", "00004", "00050"]
    assert_as_new(shards, out)


def test_shards_without_a_usable_sample_are_remembered(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    (shards / "1.tar").write_bytes(shard_bytes([("bad", "", 1)]))
    (shards / "3.tar").write_bytes(b"<html>not found</html>" * 50)
    first = build(shards, out)
    again = build(shards, out)
    assert again.num_scanned_shards == 0
    assert first.rejections == again.rejections == {"empty_caption": 1}
    assert first.shard_problems == again.shard_problems
    assert str(shards / "3.tar") in again.shard_problems
    assert_as_new(shards, out)


def test_stopped_run_goes_on_with_what_it_had(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    paths = sorted(shards.glob("*.tar"))
    whole = sum(path.stat().st_size for path in paths)

    def stop(done_bytes: int, _total: int) -> None:
        if done_bytes > whole * 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(paths, out, progress=stop)
    assert not out.exists()
    report = build(shards, out)
    assert report.num_scanned_shards == 2
    assert_as_new(shards, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "index", "shards"]


def test_scan_that_was_not_finished_is_made_again(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        build_index(sorted(shards.glob("*.tar")), out, progress=_stop_late(shards))
    for path in (tmp_path / ".index.partial/scans").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-30])
    assert build(shards, out).num_scanned_shards == 3
    assert_as_new(shards, out)


def _stop_late(shards: Path):
    whole = sum(path.stat().st_size for path in shards.glob("*.tar"))

    def stop(done_bytes: int, _total: int) -> None:
        if done_bytes > whole * 0.7:
            raise KeyboardInterrupt

    return stop


def test_move_that_was_killed_half_way_is_undone(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(shards, out)
    out.rename(tmp_path / ".index.old")
    assert build(shards, out).num_scanned_shards == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "shards"]


def test_two_at_once_are_refused(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"

    def again(_done: int, _total: int) -> None:
        with pytest.raises(RuntimeError, match=r"another process is making .*index: wait for it"):
            build(shards, out)

    build_index(sorted(shards.glob("*.tar")), out, progress=again)
    assert open_index(out).num_samples == 12


def test_a_lock_that_goes_before_it_is_taken_is_made_anew(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it goes where another process has just come to its end."""
    flock, lock = fcntl.flock, tmp_path / ".index.partial" / "lock"
    gone: list[Path] = []

    def late(file: io.IOBase, how: int) -> None:
        if not gone:
            gone.append(lock)
            lock.unlink()
            lock.parent.rmdir()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    test_two_at_once_are_refused(shards, tmp_path)
    assert gone


def test_selections_outlive_a_new_index(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(shards, out)
    (out / "selections").mkdir()
    (out / "selections/small.json").write_text("{}")
    build(shards, out)
    assert (out / "selections/small.json").read_text() == "{}"


def columns_of(index: Index) -> dict[str, list[object]]:
    return {name: index.column(name).to_pylist() for name in index.column_names}


def test_columns_come_from_json_and_from_parquet(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    json_of = b'{"url": "http://a/%d", "score": %s}'
    extra = [("00000.json", json_of % (0, b"0.5")), ("00001.json", b"not json")]
    (shards / "0.tar").write_bytes(shard_bytes(numbered(0, 3), extra[:0]))
    rows = pa.table({"key": ["00000", "00002"], "url": ["http://p/0", "http://p/2"], "n": [1, 2]})
    pq.write_table(rows, shards / "0.parquet")
    members = [
        ("a.jpg", jpeg(1)), ("a.txt", b"one"), ("a.json", json_of % (7, b"0.5")),
        ("b.jpg", jpeg(2)), ("b.txt", b"two"), ("b.json", b"no json"),
        ("c.jpg", jpeg(3)), ("c.txt", b"three"), ("c.json", b'{"url": null, "score": "x"}'),
    ]  # fmt: skip
    (shards / "1.tar").write_bytes(shard_bytes([], members))
    options = ScanOptions(columns=("url", "score:float"), sha256=True, dhash=True)
    out = tmp_path / "index"
    build(shards, out, options)
    index = open_index(out)
    columns = columns_of(index)
    assert columns["url"] == ["http://p/0", "", "http://p/2", "http://a/7", "", ""]
    np.testing.assert_array_equal(columns["score"], [np.nan] * 3 + [0.5, np.nan, np.nan])
    assert columns["sha256"][3] == hashlib.sha256(jpeg(1)).digest()
    assert len(columns["dhash"]) == 6
    build(shards, out, options)
    assert str(columns_of(open_index(out))) == str(columns)


def test_a_parquet_beside_a_shard_that_stands_for_gigabytes_is_not_read(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "0.tar").write_bytes(shard_bytes(numbered(0, 3)))
    texts = pa.array(["a" * 100_000_000] * 4)
    table = pa.table({"key": ["00000", "00001", "00002", "x"], "url": texts})
    pq.write_table(table, shards / "0.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(OSError, match=r"its parquet cannot be read.*unpack to 400,000,0"):
        build(shards, tmp_path / "index", ScanOptions(columns=("url",)))
    long = pa.table({"key": ["00000", "00001"], "url": ["b" * 1_000_000, "http://p/1"]})
    pq.write_table(long, shards / "0.parquet")
    build(shards, tmp_path / "index", ScanOptions(columns=("url",)))
    assert columns_of(open_index(tmp_path / "index"))["url"] == ["", "http://p/1", ""]


def test_unknown_column_lists_those_there_are(shards: Path, tmp_path: Path) -> None:
    build(shards, tmp_path / "index", ScanOptions(sha256=True))
    with pytest.raises(ValueError, match=r"no column 'url'; it has: sha256.*--columns url"):
        open_index(tmp_path / "index").column("url")


@pytest.mark.parametrize("columns", [("",), ("a b",), ("a:int",), ("a", "a:float"), ("sha256",)])
def test_wrong_columns_are_told(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="column"):
        ScanOptions(columns=columns)


def test_repetitions_are_counted(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    samples = [("a", "same", 1), ("b", "same", 1), ("c", "other", 1), ("d", "same", 90)]
    (shards / "0.tar").write_bytes(shard_bytes(samples[:2]))
    (shards / "1.tar").write_bytes(shard_bytes(samples[2:]))
    report = build(shards, tmp_path / "index", ScanOptions(sha256=True))
    text, files = report.repetitions["text"], report.repetitions["sha256"]
    assert (text.num_values, text.num_distinct, text.most_frequent) == (4, 2, [("same", 3)])
    assert (files.num_values, files.num_distinct, files.most_frequent) == (4, 2, [("a", 3)])


def test_remote_shards_give_the_same_index_and_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe(f"/remote/{path.name}", path.read_bytes())
    places = [f"memory://remote/{name}.tar" for name in (0, 1, 2)]
    report = build_index(places, tmp_path / "remote")
    assert report.fingerprint == build(shards, tmp_path / "local").fingerprint
    assert build_index(places, tmp_path / "remote").num_scanned_shards == 0
    index = open_index(tmp_path / "remote")
    index.check_shards()
    reader = ShardReader(index, 2)
    assert reader.read(np.array([11, 0])) == [jpeg(11), jpeg(0)]
    reader.close()
    memory.rm("/remote/2.tar")
    with pytest.raises(FileNotFoundError, match="1 of 3 shards"):
        index.check_shards()
