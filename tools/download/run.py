"""Running a download to the end: workers that may die, and rounds until every row is done.

img2dataset's reader cuts the table into `_tmp/*.feather`, for the shards that are not done, and its
distributors spread them with Ray or PySpark. A further round so costs one reading of the parquet
parts (about a second for a million rows) and what was done of the shards in work.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import fsspec.core
from filelock import FileLock, Timeout
from tqdm import tqdm

from tessera.pipeline.durable import remove_partials, write_text
from tessera.tools.download.causes import Cause
from tessera.tools.download.fetch import check_certificates
from tessera.tools.download.job import JOB_FILE, Job
from tessera.tools.download.shards import ShardBook
from tessera.tools.download.worker import ShardDownloader
from tessera.tools.download.workers import LOG, Shard, Workers, kill_workers, wait_for_orphans

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_MAX_IDLE_ROUNDS = 3
_LEAST_STALL_S = 300.0
_NO_SPACE = "No space left on device"
_BAR = "{percentage:3.0f}% {n_fmt} of {total_fmt} rows [{elapsed}, ETA {remaining}, {rate_fmt}]"


class DownloadFailedError(RuntimeError):
    """The download cannot continue by itself; the text says why and what to do."""


def run_download(
    job: Job, folder: Path, *, stall_s: float | None = None, min_free_bytes: int = 2 * 10**9
) -> dict[str, Any]:
    """Download until every row of the table is in a consistent shard.

    After any stop, the same call resumes where the last one was.

    Args:
        job: what to download, and how.
        folder: local folder of job.json, the lock and the log.
        stall_s: seconds without a row more before the workers are replaced; None: by the job.
        min_free_bytes: the download stops when less is free where the shards lie.

    Returns:
        Counts: `num_rows` of the table, `num_successes`, `num_shards`, `failures` by cause; and of
        this call `num_starts` (rounds of img2dataset), `num_quarantined`, `num_lost_workers` and
        `seconds`.

    Raises:
        ValueError: the folder was begun with other options, another process works there, or
            img2dataset cannot run the job.
        DownloadFailedError: no room is left, or another round does not help.
    """
    with exclusive(folder):
        job.check_same(folder)
        # img2dataset says nothing, and does nothing, when its distributor is not installed.
        name = job.distributor
        if name != "multiprocessing" and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"--distributor {name} needs the package {name}, which is not installed: "
                f"`pip install {name}`, or use --distributor multiprocessing"
            )
        check_certificates()
        wait_for_orphans(folder)
        remove_partials(folder)
        write_text(folder / JOB_FILE, job.to_json())
        return _Run(job, folder, stall_s or default_stall_s(job), min_free_bytes).to_the_end()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep every other process from downloading into a folder; within a process it may be nested.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "download.holder"
    lock = FileLock(folder.resolve() / "download.lock", is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = holder.read_text("utf-8").strip() if holder.is_file() else "another process"
        raise ValueError(
            f"a download is at work in {folder} ({who}): wait for it or stop it first"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {os.uname().nodename}\n", "utf-8")
        yield
    finally:
        lock.release()


def default_stall_s(job: Job) -> float:
    """Seconds that a healthy download may go without a row more, should all reach their limits."""
    return max(_LEAST_STALL_S, 2 * (job.retries + 1) * job.deadline_s)


class _Run:
    """One call of `run_download`."""

    def __init__(self, job: Job, folder: Path, stall_s: float, min_free_bytes: int) -> None:
        self._job = job
        self._folder = folder
        self._stall_s = stall_s
        self._min_free_bytes = min_free_bytes
        self._book = ShardBook(folder)
        self._num_quarantined = self._num_lost = 0
        self._live: list[Any] = []  # the counts of workers
        self._moved = (0, time.monotonic())

    def to_the_end(self) -> dict[str, Any]:
        began = time.monotonic()
        rounds = idle = 0
        self._tidy()
        with progress_bar(self._book.num_rows, self._counts()[0], sys.stderr) as self._bar:
            while not self._book.complete:
                if idle == _MAX_IDLE_ROUNDS:
                    raise DownloadFailedError(self._why_not())
                num_finished = len(self._book.finished)
                rounds += 1
                try:
                    self._check_space()
                    with (self._folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
                        with contextlib.redirect_stdout(log):
                            self._round()
                finally:
                    self._tidy()
                idle = 0 if len(self._book.finished) > num_finished else idle + 1
            self._show()
        num_rows, num_successes, failures = self._counts()
        return {
            "num_rows": num_rows,
            "num_successes": num_successes,
            "num_shards": len(self._book.finished),
            "failures": dict(failures.most_common()),
            "num_starts": rounds,
            "num_quarantined": self._num_quarantined,
            "num_lost_workers": self._num_lost,
            "seconds": round(time.monotonic() - began, 3),
        }

    def _tidy(self) -> None:
        """Look at all shards and clear away what is not whole; nothing is running."""
        self._live = []
        self._book.refresh()
        for state in self._book.set_aside():
            self._num_quarantined += 1
            print(f"shard {state.shard_id} to quarantine: {state.problem}", file=sys.stderr)

    def _round(self) -> None:
        """Download the shards that are not done, once."""
        if self._job.allow_addresses:
            networks = ", ".join(self._job.allow_addresses)
            print(f"NOTE: addresses in {networks} are fetched from although they are not public")
        if names := [n for n in _PROXIES if os.environ.get(n) or os.environ.get(n.lower())]:
            print(
                f"NOTE: {', '.join(names)} is not used: behind a proxy, the addresses that are "
                "fetched from could not be checked"
            )
        job, shards = self._job, self._job.shards
        reader, distributors = img2dataset_module("reader"), img2dataset_module("distributor")
        reader.time = SimpleNamespace(sleep=self._pause_reader)
        rows = reader.Reader(
            *(job.table, "parquet", "url", "caption", None, None, ["row_id", *job.extra_columns]),
            *(job.samples_per_shard, set(self._book.finished), f"{shards}/_tmp", 0),
        )
        files, place = fsspec.core.url_to_fs(f"{shards}/_tmp")
        files.makedirs(place, exist_ok=True)
        processes, download = job.processes or os.cpu_count() or 1, ShardDownloader(job)
        if job.distributor == "multiprocessing":
            self._distribute(processes, download, rows)
        else:
            distribute = getattr(distributors, f"{job.distributor}_distributor")
            distribute(processes, download, rows, 1000, 1)

    def _pause_reader(self, seconds: float) -> None:
        """Called by img2dataset's reader after each failed write, up to a hundred times."""
        if not isinstance(sys.exception(), OSError) or _NO_SPACE in str(sys.exception()):
            raise _no_room(self._job.shards)
        time.sleep(seconds)

    def _distribute(self, processes: int, download: ShardDownloader, reader: Any) -> None:
        """In place of img2dataset's multiprocessing, which waits for ever when a worker dies.

        A shard that fails is tried again at the end; what is missing then is left to another round.
        """
        shards, again, tried = iter(reader), deque[Shard](), set[Shard]()

        def following() -> Shard | None:
            shard = next(shards, None)
            return again.popleft() if shard is None and again else shard

        self._moved = (0, time.monotonic())
        with Workers(self._folder, processes) as workers:
            self._live = workers.counts
            while True:
                while workers.free and (shard := following()):
                    workers.submit(download.attempt, shard)
                if not workers.running:
                    return
                done = workers.wait(1.0)
                for shard, failure in done:
                    if failure and _NO_SPACE in failure:
                        raise _no_room(self._job.shards)
                    if failure is None:
                        self._num_lost += 1
                        self._note(
                            f"the worker of shard {shard[0]} was killed; the shard is done again. "
                            "If memory is short, take fewer --processes or --threads"
                        )
                    if failure != "" and shard not in tried:
                        tried.add(shard)
                        again.append(shard)
                self._check_space()
                if done:
                    self._book.refresh()
                self._end_what_hangs(self._show())

    def _end_what_hangs(self, num_rows: int) -> None:
        if num_rows != self._moved[0]:
            self._moved = (num_rows, time.monotonic())
        elif time.monotonic() - self._moved[1] > self._stall_s:
            self._note(f"nothing moved for {self._stall_s:.0f} s: workers are replaced")
            self._moved = (num_rows, time.monotonic())
            kill_workers()

    def _counts(self) -> tuple[int, int, Counter[str]]:
        """Rows tried, pictures stored and failures by cause, those of shards in work included."""
        finished, failures = self._book.finished, Counter[str]()
        rows = stored = 0
        for state in finished.values():
            rows, stored = rows + state.num_rows, stored + state.num_successes
            failures.update(state.failures)
        for counts in self._live:
            shard, tried, successes, *failed = list(counts)
            if shard and shard - 1 not in finished:
                rows, stored = rows + tried, stored + successes
                failures.update({str(c): n for c, n in zip(Cause, failed, strict=True) if n})
        return rows, stored, failures

    def _show(self) -> int:
        rows, stored, failures = self._counts()
        show(self._bar, rows, stored, failures)
        return rows

    def _note(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def _check_space(self) -> None:
        places = [self._folder]
        if "://" not in self._job.shards:
            Path(self._job.shards).mkdir(parents=True, exist_ok=True)
            places.append(Path(self._job.shards))
        for place in places:
            if shutil.disk_usage(place).free < self._min_free_bytes:
                raise _no_room(str(place))

    def _why_not(self) -> str:
        missing = sorted(self._book.plan.keys() - self._book.finished.keys())
        return (
            f"{len(missing)} shards of {len(self._book.plan)} could not be finished in "
            f"{_MAX_IDLE_ROUNDS} rounds (first: {missing[0]}); {self._folder / LOG} tells why. "
            "What is done stays; the same command resumes"
        )


def img2dataset_module(name: str) -> Any:
    """A module of img2dataset without the package's own imports.

    Those are OpenCV and albumentations, W&B, and webdataset, which imports torch where it finds it;
    nothing of them is used here.
    """
    if "img2dataset" not in sys.modules:
        spec, package = importlib.util.find_spec("img2dataset"), ModuleType("img2dataset")
        package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
        sys.modules["img2dataset"] = package
    return importlib.import_module(f"img2dataset.{name}")


class _Lines:
    """Takes what tqdm writes over itself and writes whole lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.flush = stream.flush

    def write(self, text: str) -> None:
        """Write one state of the bar."""
        self._stream.write(f"{text.strip()}\n" if text.strip() else "")


def progress_bar(num_rows: int, num_done: int, stream: TextIO) -> tqdm:
    """One bar on a terminal, a line every ten seconds anywhere else."""
    live = stream.isatty()
    pause_s = 0.5 if live else 10.0
    return tqdm(
        total=num_rows,
        initial=num_done,
        unit="row",
        bar_format=_BAR + "{postfix}",
        file=stream if live else _Lines(stream),
        mininterval=pause_s,
        maxinterval=pause_s,
        miniters=0,
        dynamic_ncols=live,
        smoothing=0.05,
    )


def show(bar: tqdm, rows: int, stored: int, failures: Counter[str]) -> None:
    """Say how far it is, what share is stored and what fails most, if it is time for that."""
    parts = [f"{100 * stored / max(1, rows):.1f}% stored"]
    parts += [f"{count:,} {cause}" for cause, count in failures.most_common(3)]
    bar.set_postfix_str("; ".join(parts), refresh=False)
    bar.update(max(0, rows - bar.n))


def _no_room(place: str) -> DownloadFailedError:
    return DownloadFailedError(
        f"no room is left at {place}: nothing is damaged; make room, and the same command resumes"
    )
