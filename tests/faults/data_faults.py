"""Files that change or rot: shards under a job, the index, checkpoints; slow and silent storage."""

from __future__ import annotations

import http.server
import math
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.pipeline.index import ScanOptions, build_index
from tessera.training.sample_ids import read_sample_ids
from tests.faults.bench import (
    LIMIT_S,
    NUM_STEPS,
    Bench,
    check_nothing_left,
    check_order,
    check_same_run,
    counted,
    last_step,
    losses,
)
from tests.faults.outcome import Outcome, line_with
from tests.faults.processes import running
from tests.faults.training_faults import go_on

_SLOW_BYTES_PER_S = 200_000
_STOPPED_S = 60.0
"""A storage that says nothing is given 30 s before it is asked again, or no more."""


def shard_deleted(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """A shard is removed under a running job."""
    return _changed_shard(bench, choose, folder, lambda shard: shard.unlink())


def shard_truncated(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """A shard is cut off under a running job."""

    def cut(shard: Path) -> None:
        with shard.open("r+b") as file:
            file.truncate(choose.randrange(shard.stat().st_size))

    return _changed_shard(bench, choose, folder, cut)


def shard_overwritten(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """A shard's bytes become others, in place, under a running job."""

    def overwrite(shard: Path) -> None:
        size = shard.stat().st_size
        with shard.open("r+b") as file:
            file.write(choose.randbytes(size))

    return _changed_shard(bench, choose, folder, overwrite)


def _changed_shard(
    bench: Bench, choose: random.Random, folder: Path, change: Callable[[Path], object]
) -> Outcome:
    """The job goes on with what can be read and names the rest; the next start refuses the shard.

    With the shard as it was, the run is done again from the last checkpoint.
    """
    index = bench.coloured(folder / "data")
    run_dir = folder / "run"
    command = bench.training(run_dir, index=index)
    shard = choose.choice(sorted((folder / "data" / "shards").glob("*.tar")))
    kept = folder / "kept"
    shutil.copy2(shard, kept)
    with running(command) as job:
        step = choose.randrange(1, NUM_STEPS // 2)
        job.wait_for(lambda: last_step(run_dir) >= step, LIMIT_S)
        start = time.monotonic()
        change(shard)
        status = job.wait(LIMIT_S)
        ended_s = time.monotonic() - start
        assert status in {0, 1}, f"status {status}:\n{job.output[-3000:]}"
        if status == 1:
            line_with(job.output, "failed", "index them again")
        named = len(set(re.findall(r"sample (\S+) of", job.output)))
        replaced = _num_replaced(run_dir, bench)
        assert status == 1 or named >= replaced, f"{replaced} replaced, {named} named"
    # Behind an end of its own accord there is nothing to go on with: a run beside it must refuse.
    other = bench.training(folder / "other", index=index)
    with running(other) as job:
        assert job.wait(LIMIT_S) == 2, job.output[-3000:]
        said = line_with(job.output, shard.name)
    shutil.rmtree(folder / "other")
    shutil.copy2(kept, shard)
    kept.unlink()
    if status == 1:
        return go_on(command, run_dir, bench, said=said, ended_s=ended_s)
    check_nothing_left(run_dir)
    return Outcome(said=said, replaced=replaced)


def _num_replaced(run_dir: Path, bench: Bench) -> int:
    """Places of the run's batches that hold another sample than without the fault."""
    found, expected = (read_sample_ids(run / "sample_ids.jsonl") for run in (run_dir, bench.run))
    return len(
        {
            one
            for step, ids in found.items()
            for one, other in zip(expected[step], ids, strict=True)
            if one != other
        }
    )


def index_rotten(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """One bit of one file of the index is another: training refuses it, and names the way out."""
    index = bench.coloured(folder / "data")
    path = choose.choice(sorted(p for p in index.rglob("*") if p.suffix in {".arrow", ".json"}))
    flip(path, choose)
    run_dir = folder / "run"
    command = bench.training(run_dir, index=index)
    with running(command) as job:
        status = job.wait(LIMIT_S)
        output = job.output
    if status == 0 and losses(run_dir) == losses(bench.run):
        return Outcome(lost=check_order(run_dir, bench.run))  # what the bit says is not used
    assert status == 2, f"a bit of {path.name} flipped and the run ended with {status}"
    said = line_with(output, str(index), "index_shards.py")
    shutil.rmtree(index)
    shards = folder / "data" / "shards"
    build_index(sorted(shards.glob("*.tar")), index, options=ScanOptions(captions="json:captions"))
    return go_on(command, run_dir, bench, said=said)


def checkpoint_rotten(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """The newest checkpoint is damaged: the run goes on from the one before, and says so."""
    run_dir = folder / "run"
    shutil.copytree(bench.run, run_dir)
    for name in ("evaluation.json", "report.html"):
        (run_dir / name).unlink()
    newest = max((run_dir / "checkpoints").iterdir())
    path = choose.choice(sorted(newest.iterdir()))
    how = choose.choice(
        [flip, _cut_off, lambda p, _c: p.unlink(), lambda p, _c: p.write_bytes(b"")]
    )
    how(path, choose)
    with running(bench.training(run_dir)) as job:
        ended = run_dir / "evaluation.json"
        job.wait_for(lambda: last_step(run_dir) < NUM_STEPS or ended.exists(), LIMIT_S)
        back_s = job.seconds
        assert job.wait(LIMIT_S) == 0, job.output[-3000:]
        output = job.output
    # Nothing holds state.json to its content; a flipped bit may leave it as good as it was.
    if path.name == "state.json" and "trying the one before" not in output:
        return Outcome(back_s=back_s, lost=check_same_run(run_dir, bench.run))
    said = line_with(output, newest.name, "trying the one before")
    return Outcome(said=said, back_s=back_s, lost=check_same_run(run_dir, bench.run))


def flip(path: Path, choose: random.Random) -> None:
    """Turn one bit of a file around."""
    data = bytearray(path.read_bytes())
    data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    path.write_bytes(data)


def _cut_off(path: Path, choose: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(choose.randrange(path.stat().st_size))


def slow_storage(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """Shards come from a server with a fifth of a megabyte a second, and long pauses."""
    shards = bench.index.parent / "shards"
    with _slow_server(shards, choose) as (address, _):
        places = [f"{address}/{path.name}" for path in sorted(shards.glob("*.tar"))]
        options = ScanOptions(captions="json:captions")
        build_index(places, folder / "index", options=options)
        run_dir = folder / "run"
        cache = ["--data.cache.folder", folder / "cache"] if choose.random() < 0.5 else []
        with running(bench.training(run_dir, *cache, index=folder / "index")) as job:
            assert job.wait(LIMIT_S) == 0, job.output[-3000:]
        assert not list(folder.rglob("*.partial*")), "a half-fetched shard is left"
    with counted(run_dir):
        assert losses(run_dir) == losses(bench.run), "other losses than from a fast disk"
    return Outcome(lost=check_order(run_dir, bench.run))


def silent_storage(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """The server of the shards stops in the middle of its answers; somebody ends the run."""
    shards = bench.index.parent / "shards"
    with _slow_server(shards, choose, bytes_per_s=math.inf) as (address, silent):
        places = [f"{address}/{path.name}" for path in sorted(shards.glob("*.tar"))]
        options = ScanOptions(captions="json:captions")
        build_index(places, folder / "index", options=options)
        run_dir = folder / "run"
        command = bench.training(run_dir, index=folder / "index")
        signum = choose.choice([signal.SIGTERM, signal.SIGINT])
        step = choose.randrange(1, NUM_STEPS // 3)
        with running(command) as job:
            job.wait_for(lambda: last_step(run_dir) >= step, LIMIT_S)
            silent.set()
            time.sleep(choose.uniform(3, 6))
            start = time.monotonic()
            job.process.send_signal(signum)
            status = job.wait(_STOPPED_S)
            ended_s = time.monotonic() - start
            assert status == 128 + signum, f"status {status}"
            said = line_with(job.output, "stopped by", "same command goes on")
        silent.clear()
        return go_on(command, run_dir, bench, said=said, ended_s=ended_s)


@contextmanager
def _slow_server(
    folder: Path, choose: random.Random, bytes_per_s: float = _SLOW_BYTES_PER_S
) -> Iterator[tuple[str, threading.Event]]:
    """Serves a folder with byte ranges; yields its address, and what makes it fall silent."""
    lock = threading.Lock()
    silent, ended = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            data = (folder / self.path.lstrip("/")).read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(found[1]) if found else 0
            last = min(int(found[2] or len(data)), len(data) - 1) if found else len(data) - 1
            self.send_response(206 if found else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last + 1 - first))
            if found:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            if not with_body:
                return
            if silent.is_set():
                self.wfile.write(data[first : (first + last) // 2])
                self.wfile.flush()
                ended.wait()
                return
            with lock:  # all requests share the line
                pause = choose.choice([0.0, 0.0, 0.0, 0.5]) if bytes_per_s < math.inf else 0.0
                time.sleep(pause + (last + 1 - first) / bytes_per_s)
            self.wfile.write(data[first : last + 1])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", silent
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


FAULTS = {
    "shard deleted under training": shard_deleted,
    "shard truncated under training": shard_truncated,
    "shard overwritten under training": shard_overwritten,
    "a flipped bit in the index": index_rotten,
    "newest checkpoint damaged": checkpoint_rotten,
    "slow storage": slow_storage,
    "silent storage, then SIGTERM or SIGINT": silent_storage,
}
