"""Training from shards on a web server that fails one request in twenty."""

from __future__ import annotations

import http.server
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tessera.pipeline import LoaderConfig, open_loader, storage
from tessera.pipeline.index import ScanOptions, build_index, open_index
from tessera.pipeline.shard_cache import CacheConfig

NUM_STEPS = 14


class FlakyHandler(http.server.BaseHTTPRequestHandler):
    """Serves a folder with byte ranges; some answers are 503, some stop half way."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    chance = random.Random(0)
    fault_share = 0.0
    fail_first = 0
    num_gets: ClassVar[Counter[str]] = Counter()
    num_faults = 0
    silent = threading.Event()
    ended = threading.Event()
    lock = threading.Lock()

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        with self.lock:
            draw = self.chance.random()
            self.num_gets[self.path] += with_body
            early = self.num_gets[self.path] <= self.fail_first
            fails = with_body and (early or draw < self.fault_share)
            type(self).num_faults += fails
        if fails and self.num_gets[self.path] % 2:
            self.send_error(503)
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if with_body and self.silent.is_set():
            self.wfile.write(data[first : first + 10])
            self.wfile.flush()
            self.ended.wait()
            self.close_connection = True
        elif with_body:
            body = data[first : last + 1]
            self.wfile.write(body[: len(body) // 2] if fails else body)
            if fails:
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


@pytest.fixture
def server(coloured_index: Path) -> Iterator[str]:
    """The address of a server of the shards of `coloured_index`."""
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    FlakyHandler.folder = Path(open_index(coloured_index).shards[0].location).parent
    FlakyHandler.fault_share, FlakyHandler.fail_first, FlakyHandler.num_faults = 0.0, 0, 0
    FlakyHandler.num_gets.clear()
    FlakyHandler.silent.clear()
    FlakyHandler.ended.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FlakyHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    FlakyHandler.ended.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote_index(server: str, tmp_path: Path) -> Path:
    """An index of the shards on the server."""
    places = [f"{server}/{number:05d}.tar" for number in range(3)]
    build_index(places, tmp_path / "index", options=ScanOptions(captions="json:captions"))
    FlakyHandler.num_gets.clear()
    return tmp_path / "index"


def config(order: str, folder: str = "") -> LoaderConfig:
    return LoaderConfig(
        batch_size=16,
        image_size=32,
        patch_size=8,
        context_length=16,
        order="window" if order == "window" else "global",
        window_shards=2,
        cache=CacheConfig(folder=folder, max_gib=0.1, first_wait_s=0.01),
        num_threads=4,
    )


@pytest.mark.parametrize(("order", "cached"), [("window", True), ("global", False)])
def test_a_flaky_server_gives_what_the_local_files_give(
    remote_index: Path, coloured_index: Path, tmp_path: Path, order: str, *, cached: bool
) -> None:
    folder = str(tmp_path / "cache") if cached else ""
    FlakyHandler.fault_share = 0.05
    # Three whole shards are few requests: the first two of each fail besides. Pieces are hundreds.
    FlakyHandler.fail_first = 2 if cached else 0
    with (
        open_loader(coloured_index, config(order)) as local,
        open_loader(remote_index, config(order, folder)) as remote,
    ):
        for _ in range(NUM_STEPS):
            ours, theirs = next(local), next(remote)
            np.testing.assert_array_equal(ours.sample_ids, theirs.sample_ids)
            assert ours.patches.equal(theirs.patches)
            assert ours.tokens.equal(theirs.tokens)
        assert remote.stats.num_replaced == 0
    assert FlakyHandler.num_faults >= (6 if cached else 1)
    if cached:
        assert len(os.listdir(folder)) >= 3  # noqa: PTH208 - counts the locks as well


@pytest.mark.parametrize("cached", [True, False])
def test_a_silent_server_is_asked_again_and_does_not_keep_the_loader_from_closing(
    remote_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cached: bool
) -> None:
    monkeypatch.setattr(storage, "_SILENCE_S", 1.0)
    folder = str(tmp_path / "cache") if cached else ""
    with open_loader(remote_index, config("global", folder)) as loader:
        first = next(loader) if not cached else None
        before = sum(FlakyHandler.num_gets.values())
        FlakyHandler.silent.set()
        waiting = threading.Thread(target=lambda: [next(loader, None) for _ in range(9)])
        waiting.daemon = True
        waiting.start()
        until = time.monotonic() + 20
        while sum(FlakyHandler.num_gets.values()) < before + 4 and time.monotonic() < until:
            time.sleep(0.05)
        start = time.monotonic()
    assert time.monotonic() - start < 8, "closing waits for a server that says nothing"
    waiting.join(timeout=5)
    assert not waiting.is_alive()
    # Nothing is lost: what was to come comes when the server speaks again.
    FlakyHandler.silent.clear()
    with open_loader(remote_index, config("global", folder)) as loader:
        again = next(loader)
        assert first is None or again.patches.equal(first.patches)
        assert loader.stats.num_replaced == 0


def test_indexing_goes_on_over_faults_and_gives_up_with_the_shard(
    server: str, coloured_index: Path, tmp_path: Path
) -> None:
    places = [f"{server}/{number:05d}.tar" for number in range(3)]
    options = ScanOptions(captions="json:captions")
    FlakyHandler.fail_first = 2
    report = build_index(places, tmp_path / "index", options=options)
    assert report.num_samples == open_index(coloured_index).num_samples
    assert FlakyHandler.num_faults >= 6
    FlakyHandler.fault_share = 1.0
    with pytest.raises(OSError, match=r"0000\d\.tar"):
        build_index(places, tmp_path / "again", options=options)
