"""Shards are open as long as they are read, and never more of them than the process may open."""

import resource
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tessera.pipeline.index import Index
from tessera.pipeline.reader import ShardReader

_NUM_SHARDS = 300
_SIZE = 256


def _content(shard: int) -> bytes:
    return shard.to_bytes(4, "little") * (_SIZE // 4)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """One sample in each of 300 shards."""
    for shard in range(_NUM_SHARDS):
        (tmp_path / f"{shard}.tar").write_bytes(_content(shard))
    found: Any = SimpleNamespace(
        shards=[SimpleNamespace(location=str(tmp_path / f"{n}.tar")) for n in range(_NUM_SHARDS)],
        shard=np.arange(_NUM_SHARDS, dtype=np.int32),
        offset=np.zeros(_NUM_SHARDS, np.int64),
        size=np.full(_NUM_SHARDS, _SIZE, np.int32),
    )
    return cast("Index", found)


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open 200 files."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (200, 200))


def test_a_batch_of_more_shards_than_may_be_open(index: Index, few_files: None) -> None:
    reader = ShardReader(index, num_threads=2)
    ids = np.random.default_rng(0).permutation(_NUM_SHARDS)
    assert reader.read(ids) == [_content(shard) for shard in ids.tolist()]
    assert len(reader._files) <= 100
    reader.close()


def test_no_samples(index: Index) -> None:
    reader = ShardReader(index, num_threads=2)
    assert reader.read(np.zeros(0, np.int64)) == []
    reader.close()


def test_a_thread_does_not_close_what_another_reads(index: Index, few_files: None) -> None:
    """The thread that replaces a bad sample reads beside the one that reads ahead.

    A file closed under a reader gives an error, or, where its number was given away again, the
    bytes of another shard.
    """
    reader = ShardReader(index, num_threads=2)
    ids = np.arange(_NUM_SHARDS)
    done = Event()

    def replace() -> None:
        shard = 0
        while not done.is_set():
            assert reader.read(np.array([shard])) == [_content(shard)]
            shard = (shard + 1) % _NUM_SHARDS

    thread = Thread(target=replace)
    thread.start()
    wrong = 0
    for _ in range(20):
        wrong += sum(data != _content(n) for n, data in enumerate(reader.read(ids)))
    done.set()
    thread.join()
    reader.close()
    assert not wrong


def test_a_cached_shard_that_goes_before_it_is_opened_is_fetched_again(index: Index) -> None:
    """Another process of the machine, in another window, drops it to make room."""
    reader = ShardReader(index, num_threads=2)
    there = index.shards[7].location
    index.shards[7].location = "https://host/7.tar"  # pyright: ignore[reportAttributeAccessIssue]
    paths = iter([f"{there}.dropped", there])
    cache: Any = SimpleNamespace(
        path=lambda _: next(paths), give_up=lambda: None, close=lambda: None
    )
    reader._cache = cache
    assert reader.read(np.array([7])) == [_content(7)]
    reader.close()
