"""Running img2dataset to the end: workers that may die, and rounds until every row is done.

img2dataset resumes by shards: it cuts the table into `_tmp/*.feather` again, for the shards that
are not done only, and downloads those. A round so costs one reading of the parquet parts (about a
second for a million rows) and what was done of the shards in work.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock, Timeout

from tessera.pipeline.durable import remove_partials, write_text
from tessera.tools.download.causes import Cause
from tessera.tools.download.fetch import FetchLimits, check_certificates
from tessera.tools.download.finished import ShardBook
from tessera.tools.download.job import JOB_FILE, Job
from tessera.tools.download.processes import stop_on_sigterm
from tessera.tools.download.progress import Progress
from tessera.tools.download.upright import UprightResizer
from tessera.tools.download.workers import LOG, Shard, Workers, kill_workers, wait_for_orphans

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_MAX_IDLE_ROUNDS = 3
_LEAST_STALL_S = 300.0
_NO_SPACE = "No space left on device"


class DownloadFailedError(RuntimeError):
    """The download cannot continue by itself; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When to intervene."""

    stall_s: float | None = None
    """Seconds without a row more before the workers are replaced; None: by the job's limits."""
    min_free_bytes: int = 2 * 10**9
    """The download stops when less than this is free where the shards lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A complete download."""

    num_rows: int  # Rows of the table; each is in a shard that is done
    num_successes: int  # Pictures stored
    num_shards: int  # Shards
    failures: dict[str, int]  # Failed rows by cause
    num_starts: int  # Rounds of img2dataset in this call; 0: everything was done before
    num_quarantined: int
    """Inconsistent shards that this call moved to quarantine and had done again."""
    num_lost_workers: int  # Worker processes that something killed during this call
    seconds: float  # Wall time of this call

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


def run_download(job: Job, folder: Path, *, limits: Limits | None = None) -> Outcome:
    """Download until every row of the table is in a consistent shard.

    After any stop, the same call resumes where the last one was.

    Args:
        job: what to download, and how.
        folder: local folder of job.json, the lock and the log.
        limits: when to intervene.

    Raises:
        ValueError: the folder was begun with other options, another process works there, or
            img2dataset cannot run the job.
        DownloadFailedError: no room is left, or another round does not help.
        KeyboardInterrupt: the user (SIGINT) or, as `Stopped`, the system (SIGTERM) ended it.
    """
    with exclusive(folder), stop_on_sigterm():
        job.check_same(folder)
        _check_distributor(job.distributor)
        check_certificates()
        wait_for_orphans(folder)
        remove_partials(folder)
        write_text(folder / JOB_FILE, job.to_json())
        return _Run(job, folder, limits or Limits()).to_the_end()


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


def _check_distributor(name: str) -> None:
    """img2dataset says nothing, and does nothing, when its distributor is not installed."""
    if name != "multiprocessing" and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"--distributor {name} needs the package {name}, which is not installed: "
            f"`pip install {name}`, or use --distributor multiprocessing"
        )


class _Run:
    """One call of `run_download`."""

    def __init__(self, job: Job, folder: Path, limits: Limits) -> None:
        self._job = job
        self._folder = folder
        self._limits = limits
        self._stall_s = limits.stall_s or default_stall_s(job)
        self._book = ShardBook(folder)
        self._num_quarantined = self._num_lost = 0
        self._live: list[Any] = []
        self._moved = (0, time.monotonic())

    def to_the_end(self) -> Outcome:
        began = time.monotonic()
        rounds = idle = 0
        self._tidy()
        self._progress = Progress(self._book.num_rows, self._finished_counts()[0])
        try:
            while not self._book.complete:
                if idle == _MAX_IDLE_ROUNDS:
                    raise DownloadFailedError(self._why_not())
                num_finished = len(self._book.finished)
                rounds += 1
                try:
                    self._round()
                finally:
                    self._tidy()
                idle = 0 if len(self._book.finished) > num_finished else idle + 1
            self._show()
        finally:
            self._progress.close()
        states = self._book.finished.values()
        return Outcome(
            num_rows=self._book.num_rows,
            num_successes=sum(state.num_successes for state in states),
            num_shards=len(states),
            failures=dict(sum((Counter(s.failures) for s in states), Counter()).most_common()),
            num_starts=rounds,
            num_quarantined=self._num_quarantined,
            num_lost_workers=self._num_lost,
            seconds=time.monotonic() - began,
        )

    def _tidy(self) -> None:
        """Look at all shards and clear away what is not whole; nothing is running."""
        self._live = []
        self._book.refresh()
        for state in self._book.set_aside():
            self._num_quarantined += 1
            print(f"shard {state.shard_id} to quarantine: {state.problem}", file=sys.stderr)

    def _round(self) -> None:
        """Run img2dataset once over the shards that are not done."""
        self._check_space()
        with (self._folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
            with contextlib.redirect_stdout(log):
                self._announce()
                self._call_img2dataset()

    def _call_img2dataset(self) -> None:
        worker = importlib.import_module("tessera.tools.download.worker")
        main: Any = worker.img2dataset_main
        reader: Any = importlib.import_module("img2dataset.reader")
        resizer, limits, job = _resizer_of(self._job), _limits_of(self._job), self._job
        main.Downloader = lambda **options: worker.TesseraDownloader(
            **options | {"resizer": resizer, "limits": limits}
        )
        main.multiprocessing_distributor = self._distribute
        main.LoggerProcess = _NoLogger
        # Its handler of SIGINT ends the program with status 0.
        main.signal = SimpleNamespace(signal=lambda *_: None, SIGINT=signal.SIGINT)
        reader.time = SimpleNamespace(sleep=self._pause_reader)
        main.download(
            url_list=job.table,
            input_format="parquet",
            url_col="url",
            caption_col="caption",
            save_additional_columns=["row_id", *job.extra_columns],
            output_folder=job.shards,
            output_format="webdataset",
            number_sample_per_shard=job.samples_per_shard,
            oom_shard_count=5,
            processes_count=job.processes or os.cpu_count() or 1,
            thread_count=job.threads,
            distributor=job.distributor,
            compute_hash="sha256",
            # The EXIF block would tell to turn pictures that are stored upright.
            extract_exif=False,
            incremental_mode="incremental",
            enable_wandb=False,
        )

    def _pause_reader(self, seconds: float) -> None:
        """Called by img2dataset's reader after each failed write, up to a hundred times."""
        if not isinstance(sys.exception(), OSError) or _NO_SPACE in str(sys.exception()):
            raise _no_room(self._job.shards)
        time.sleep(seconds)

    def _announce(self) -> None:
        if self._job.allow_addresses:
            networks = ", ".join(self._job.allow_addresses)
            print(f"NOTE: addresses in {networks} are fetched from although they are not public")
        if names := [n for n in _PROXIES if os.environ.get(n) or os.environ.get(n.lower())]:
            print(
                f"NOTE: {', '.join(names)} is not used: behind a proxy, the addresses that are "
                "fetched from could not be checked"
            )

    def _distribute(self, processes: int, downloader: Any, reader: Any, *_: object) -> None:
        """Stands in for img2dataset's distributor, which waits for ever when a worker dies.

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
                    workers.submit(downloader.attempt, shard)
                if not workers.running:
                    return
                done = workers.wait(1.0)
                for shard, failure in done:
                    if failure and _NO_SPACE in failure:
                        raise _no_room(self._job.shards)
                    if failure is None:
                        self._note_lost()
                    if failure != "" and shard not in tried:
                        tried.add(shard)
                        again.append(shard)
                self._look(refresh=bool(done))

    def _note_lost(self) -> None:
        self._num_lost += 1
        if self._num_lost == 1:
            self._progress.note(
                "a worker process was killed; its shard is done again. If memory is short, take "
                "fewer --processes or --threads"
            )

    def _look(self, *, refresh: bool) -> None:
        """Show how far it is; end what hangs.

        Raises:
            DownloadFailedError: no room is left.
        """
        self._check_space()
        if refresh:
            self._book.refresh()
        num_rows = self._show()
        if num_rows != self._moved[0]:
            self._moved = (num_rows, time.monotonic())
        elif time.monotonic() - self._moved[1] > self._stall_s:
            self._progress.note(f"nothing moved for {self._stall_s:.0f} s: workers are replaced")
            self._moved = (num_rows, time.monotonic())
            kill_workers()

    def _finished_counts(self) -> tuple[int, int, Counter[str]]:
        causes: Counter[str] = Counter()
        states = self._book.finished.values()
        for state in states:
            causes.update(state.failures)
        return sum(s.num_rows for s in states), sum(s.num_successes for s in states), causes

    def _show(self) -> int:
        """Show rows tried, those in shards that are being written included; return their number."""
        rows, stored, causes = self._finished_counts()
        finished = self._book.finished
        for counts in self._live:
            shard, tried, successes, *failed = list(counts)
            if shard and shard - 1 not in finished:
                rows, stored = rows + tried, stored + successes
                causes.update({str(c): n for c, n in zip(Cause, failed, strict=True) if n})
        self._progress.show(rows, stored, causes)
        return rows

    def _check_space(self) -> None:
        places = [self._folder]
        if "://" not in self._job.shards:
            Path(self._job.shards).mkdir(parents=True, exist_ok=True)
            places.append(Path(self._job.shards))
        for place in places:
            if shutil.disk_usage(place).free < self._limits.min_free_bytes:
                raise _no_room(str(place))

    def _why_not(self) -> str:
        missing = sorted(self._book.plan.keys() - self._book.finished.keys())
        return (
            f"{len(missing)} shards of {len(self._book.plan)} could not be finished in "
            f"{_MAX_IDLE_ROUNDS} rounds (first: {missing[0]}); {self._folder / LOG} tells why. "
            "What is done stays; the same command resumes"
        )


class _NoLogger:
    """Stands in for img2dataset's process that reads the statistics, for W&B and for its log."""

    def __init__(self, *_: object) -> None:
        self.done_shards: set[int] = set()

    def start(self) -> None:
        """Nothing to start."""

    join = terminate = start


def _resizer_of(job: Job) -> UprightResizer:
    return UprightResizer(**{each.name: getattr(job, each.name) for each in fields(UprightResizer)})


def _limits_of(job: Job) -> FetchLimits:
    names = [each.name for each in fields(FetchLimits) if each.name != "connections"]
    return FetchLimits(connections=job.threads, **{name: getattr(job, name) for name in names})


def _no_room(place: str) -> DownloadFailedError:
    return DownloadFailedError(
        f"no room is left at {place}: nothing is damaged; make room, and the same command resumes"
    )
