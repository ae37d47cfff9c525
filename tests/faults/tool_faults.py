"""Faults under the tools that prepare data: download, packing, indexing, captions, embeddings."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.bench import LIMIT_S, Bench, check_nothing_left, hashes
from tests.faults.outcome import Outcome, line_with
from tests.faults.processes import Job, running, send
from tests.hostile_server import HostileServer

_NUM_ROWS = 240
_ENDED_S = 30.0
"""A job that is asked to end, or whose worker is lost, is gone after so long."""


def killed(
    command: list[object],
    choose: random.Random,
    *,
    began: Callable[[], bool],
    length_s: float,
    check: Callable[[], None],
) -> Outcome:
    """Kill a job one to three times, then let it end.

    Every second time only its first process is killed, and the others must follow by themselves.

    Args:
        command: the same for every start.
        choose: draws the moments.
        began: whether work has begun; half of the kills come behind that, half at any moment.
        length_s: of an undisturbed run.
        check: what must hold whenever nothing is running.
    """
    ended_s, times = 0.0, choose.randint(1, 3)
    for _ in range(times):
        with running(command) as job:
            if choose.random() < 0.5:
                job.wait_for(began, LIMIT_S)
                time.sleep(choose.uniform(0, 0.3 * length_s))
            else:
                time.sleep(choose.uniform(0, length_s))
            ended_s = max(ended_s, kill(job, whole=choose.random() < 0.5))
        check()
    with running(command) as job:
        status = job.wait(LIMIT_S)
        assert status == 0, job.output[-3000:]
        assert not job.orphans(), "processes outlive the job"
        return Outcome(times=times, ended_s=ended_s, back_s=job.seconds)


def kill(job: Job, *, whole: bool) -> float:
    """SIGKILL to all processes, or to the first alone; returns the seconds until none is left."""
    start = time.monotonic()
    if whole:
        job.kill()
    else:
        job.process.kill()
        job.process.wait()
        assert not job.orphans(_ENDED_S), "processes outlive the one that started them"
    return time.monotonic() - start


def shards_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """make_shards is killed; the same command then gives the same bytes."""
    expected = hashes(bench.shards)
    out = folder / "shards"

    def check() -> None:
        assert not out.exists() or hashes(out) == expected, "half written under its final name"
        if out.exists():  # It had just finished: the tool refuses to write over it.
            shutil.rmtree(out)

    outcome = killed(
        bench.make_shards(out),
        choose,
        began=lambda: any(folder.rglob("*.tar")),
        length_s=bench.shards_seconds,
        check=check,
    )
    assert hashes(out) == expected, "other bytes than without the fault"
    check_nothing_left(out)
    return outcome


def index_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """Indexing is killed; it goes on where it was, to the same index."""
    expected = hashes(bench.big_index, "*.arrow")
    out = folder / "index"

    def check() -> None:
        assert not out.exists() or hashes(out, "*.arrow") == expected, "half written"

    outcome = killed(
        bench.index_shards(out),
        choose,
        began=lambda: any(folder.rglob("scans/*")),
        length_s=bench.index_seconds,
        check=check,
    )
    assert hashes(out, "*.arrow") == expected, "another index than without the fault"
    check_nothing_left(out)
    return outcome


def captions_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """add_captions is killed; the index stays as it was, or has the whole source."""
    expected = hashes(bench.captions.parent)
    index = Path(shutil.copytree(bench.big_index, folder / "index"))

    def check() -> None:
        arrow = index / "captions" / "more.arrow"
        if arrow.exists():
            found = {name: one for name, one in hashes(arrow.parent).items() if name in expected}
            assert found == expected, "half written under its final name"

    outcome = killed(
        bench.add_captions(index, "--replace"),
        choose,
        began=(index / "captions" / ".more.partial").exists,
        length_s=bench.captions_seconds,
        check=check,
    )
    assert hashes(index / "captions") == expected, "another source than without the fault"
    check_nothing_left(index)
    return outcome


def embedding_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """embed_captions is killed; it goes on with the parts that are missing, to the same numbers."""
    expected = hashes(bench.embeddings)
    index = Path(shutil.copytree(bench.big_index, folder / "index"))

    def check() -> None:
        found = hashes(index, "[!.]*.f16")
        assert found.items() <= {f"embeddings/{n}": h for n, h in expected.items()}.items(), (
            "half written under its final name"
        )

    outcome = killed(
        bench.embed_captions(index),
        choose,
        began=lambda: any(index.rglob("*.f16")),
        length_s=bench.embeddings_seconds,
        check=check,
    )
    assert hashes(index / "embeddings") == expected, "other embeddings than without the fault"
    check_nothing_left(index)
    return outcome


def index_worker_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """One of the processes that scan is killed, as the system does when memory is short."""
    out = folder / "index"
    expected = hashes(bench.big_index, "*.arrow")
    command = bench.index_shards(out)
    with running(command) as job:
        job.wait_for(lambda: any(folder.rglob("scans/*")), LIMIT_S)
        start = time.monotonic()
        _kill_a_worker(job, choose)
        status = job.wait(LIMIT_S)
        ended_s = time.monotonic() - start
        assert status == 1, f"status {status}"
        said = line_with(job.output, "worker process was killed", "fewer workers")
        assert not job.orphans(), "processes outlive the job"
    return _again(command, lambda: hashes(out, "*.arrow") == expected, said, ended_s)


def captions_worker_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """One of the processes that tokenise is killed."""
    expected = hashes(bench.captions.parent)
    index = Path(shutil.copytree(bench.big_index, folder / "index"))
    command = bench.add_captions(index)
    with running(command) as job:
        job.wait_for(lambda: bool(_workers(job)), LIMIT_S)
        start = time.monotonic()
        _kill_a_worker(job, choose)
        status = job.wait(LIMIT_S)
        ended_s = time.monotonic() - start
        assert status == 1, f"status {status}: {job.output[-2000:]}"
        said = line_with(job.output, "worker process was killed", "fewer")
        assert not job.orphans(), "processes outlive the job"
    return _again(command, lambda: hashes(index / "captions") == expected, said, ended_s)


def _kill_a_worker(job: Job, choose: random.Random) -> None:
    workers: list[int] = []
    assert job.wait_for(lambda: bool(workers.extend(_workers(job)) or workers), LIMIT_S), job.output
    send(choose.choice(workers), signal.SIGKILL)


def _workers(job: Job) -> list[int]:
    """Processes of a pool: those that Python spawned, without its resource tracker."""
    found = []
    for pid in job.pids():
        place = Path(f"/proc/{pid}/cmdline")
        words = place.read_bytes() if place.exists() else b""
        if (
            pid != job.process.pid
            and b"multiprocessing" in words
            and b"resource_tracker" not in words
        ):
            found.append(pid)
    return found


def _again(
    command: list[object], is_right: Callable[[], bool], said: str, ended_s: float
) -> Outcome:
    with running(command) as job:
        assert job.wait(LIMIT_S) == 0, job.output[-3000:]
        assert is_right(), "another result than without the fault"
        return Outcome(said=said, ended_s=ended_s, back_s=job.seconds)


def download_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """The download is killed; it goes on to every row once."""
    del bench
    with HostileServer() as server:
        table = folder / "links.tsv"
        rows = [f"{server.url(f'good/{n}.jpg')}\tpicture {n}\n" for n in range(_NUM_ROWS)]
        table.write_text("".join(rows), encoding="utf-8")
        out = folder / "out"
        outcome = killed(
            _download(table, out),
            choose,
            began=lambda: any(out.glob("shards/*")),
            length_s=8.0,
            check=lambda: None,
        )
        _check_downloaded(out)
        return outcome


def _download(table: Path, out: Path) -> list[object]:
    words = ["-m", "tessera.tools.download", out, "--table", table, "--samples-per-shard", 40]
    speed = ["--processes", 2, "--threads", 4, "--image-size", 64, "--retries", 0]
    local = ["--allow-address", "127.0.0.1/32", "--no-dns-probe", "--min-free-gb", 0.2]
    return [sys.executable, *words, *speed, *local, "--stall-seconds", 60]


def _check_downloaded(out: Path) -> None:
    found: Counter[str] = Counter()
    for path in (out / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            found.update(member.name for member in tar if member.name.endswith(".jpg"))
    assert len(found) == _NUM_ROWS, f"{_NUM_ROWS - len(found)} rows are missing"
    assert set(found.values()) == {1}, "rows are there twice"
    check_nothing_left(out)


FAULTS = {
    "SIGKILL of the download": download_killed,
    "SIGKILL of make_shards": shards_killed,
    "SIGKILL of indexing": index_killed,
    "SIGKILL of one indexing worker": index_worker_killed,
    "SIGKILL of caption import": captions_killed,
    "SIGKILL of one caption worker": captions_worker_killed,
    "SIGKILL of embedding": embedding_killed,
}
