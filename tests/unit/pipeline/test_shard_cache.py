"""Remote shards on the local disk: checked, kept within their room, fetched again after faults."""

from __future__ import annotations

import fcntl
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tessera.pipeline import shard_cache
from tessera.pipeline.index import ShardRecord
from tessera.pipeline.shard_cache import CacheConfig, ShardCache

SIZE = 200_000


class FlakyFileSystem(MemoryFileSystem):
    """fsspec's memory, in which opening fails as often as `faults` says."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the class it derives from
    faults = 0
    opened = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        type(self).opened += 1
        if type(self).faults > 0:
            type(self).faults -= 1
            raise ConnectionResetError("the server hung up")
        return super()._open(path, *args, **kwargs)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture
def shards() -> Iterator[list[ShardRecord]]:
    """Five shards of 200 kB on a remote store."""
    FlakyFileSystem.faults = FlakyFileSystem.opened = 0
    files = FlakyFileSystem()
    records = []
    for number in range(5):
        data = bytes([number]) * SIZE
        files.pipe(f"/{number}.tar", data)
        crc = zlib.crc32(data[-65536:], zlib.crc32(data[:65536]))
        records.append(
            ShardRecord(
                location=f"flaky:///{number}.tar",
                size_bytes=SIZE,
                mtime_ns=0,
                version="",
                head_tail_crc32=crc,
                num_samples=1,
            )
        )
    FlakyFileSystem.opened = 0
    yield records
    files.store.clear()


def config(folder: Path, room_bytes: int = 10 * SIZE, **options: Any) -> CacheConfig:
    return CacheConfig(
        folder=str(folder), max_gib=room_bytes / 1024**3, first_wait_s=0.001, **options
    )


def tars(folder: Path) -> int:
    return len(list(folder.glob("*.tar")))


def test_shards_are_fetched_once_and_kept_for_the_next_run(
    shards: list[ShardRecord], tmp_path: Path
) -> None:
    for _ in range(2):
        cache = ShardCache(config(tmp_path), shards)
        cache.expect([3, 1])
        assert cache.path(1).read_bytes() == bytes([1]) * SIZE
        assert cache.path(3).read_bytes() == bytes([3]) * SIZE
        cache.close()
    assert FlakyFileSystem.opened == 2


def test_faults_are_tried_again_and_then_given_up(
    shards: list[ShardRecord], tmp_path: Path
) -> None:
    cache = ShardCache(config(tmp_path, num_tries=3), shards)
    FlakyFileSystem.faults = 2
    assert cache.path(0).stat().st_size == SIZE
    FlakyFileSystem.faults = 3
    with pytest.raises(OSError, match=r"1\.tar could not be fetched in 3 tries.*hung up"):
        cache.path(1)
    assert cache.path(1).stat().st_size == SIZE
    cache.close()
    assert not list(tmp_path.glob("*.partial*"))


def test_what_a_killed_fetch_left_goes_and_one_under_way_stays(
    shards: list[ShardRecord], tmp_path: Path
) -> None:
    for name in ("left", "busy"):
        (tmp_path / f".{name}.tar.partial").write_bytes(b"half")
    with (tmp_path / ".busy.tar.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ShardCache(config(tmp_path), shards).close()
    assert [path.name for path in tmp_path.glob("*.partial")] == [".busy.tar.partial"]


@pytest.mark.parametrize("fault", ["short", "changed"])
def test_what_is_not_the_indexed_shard_is_refused(
    shards: list[ShardRecord], tmp_path: Path, fault: str
) -> None:
    wrong = {"size_bytes": SIZE + 1} if fault == "short" else {"head_tail_crc32": 1}
    records = [replace(shards[0], **wrong)]
    cache = ShardCache(config(tmp_path, num_tries=2), records)
    with pytest.raises(OSError, match="bytes came" if fault == "short" else "not those"):
        cache.path(0)
    cache.close()
    assert tars(tmp_path) == 0


def test_room_is_kept_and_what_is_wanted_stays(shards: list[ShardRecord], tmp_path: Path) -> None:
    cache = ShardCache(config(tmp_path, 3 * SIZE, num_fetches=1), shards)
    for first in range(3):
        wanted = [first, first + 1, first + 2]
        cache.expect(wanted)
        paths = [cache.path(number) for number in wanted]
        assert all(path.exists() for path in paths)
        assert tars(tmp_path) == 3
    cache.close()


def test_fetches_at_once_do_not_count_on_the_same_room(
    shards: list[ShardRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    both = threading.Barrier(2, timeout=20)
    transfer = shard_cache._transfer

    def observed(*arguments: Any) -> None:
        both.wait()
        seen.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        both.wait()
        transfer(*arguments)

    monkeypatch.setattr(shard_cache, "_transfer", observed)
    cache = ShardCache(config(tmp_path, 2 * SIZE, num_fetches=2), shards)
    for wanted in ([0, 1], [2, 3]):
        cache.expect(wanted)
        for number in wanted:
            assert cache.path(number).read_bytes() == bytes([number]) * SIZE
        assert tars(tmp_path) == 2
    assert seen == [2 * SIZE] * 4
    cache.close()


def test_a_failed_fetch_gives_its_room_back(shards: list[ShardRecord], tmp_path: Path) -> None:
    cache = ShardCache(config(tmp_path, 2 * SIZE, num_tries=2), shards)
    cache.path(0)
    FlakyFileSystem.faults = 2
    with pytest.raises(OSError, match="in 2 tries"):
        cache.path(1)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == SIZE
    cache.path(1)
    assert tars(tmp_path) == 2
    cache.close()


def test_too_little_room_is_told_with_what_to_do(shards: list[ShardRecord], tmp_path: Path) -> None:
    cache = ShardCache(config(tmp_path, 2 * SIZE), shards)
    with pytest.raises(ValueError, match="enlarge it or read fewer shards in a window"):
        cache.expect([0, 1, 2])
    cache.close()


def test_a_shard_that_another_process_dropped_comes_back(
    shards: list[ShardRecord], tmp_path: Path
) -> None:
    cache = ShardCache(config(tmp_path), shards)
    cache.path(2).unlink()
    assert cache.path(2).read_bytes() == bytes([2]) * SIZE
    cache.close()
