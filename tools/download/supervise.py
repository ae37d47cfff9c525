"""Running img2dataset to the end: under a lock, watched, started again where it stops or hangs.

img2dataset goes on where it stopped at every start: it cuts the table into `_tmp/*.feather` again,
for the shards that are not done only, and downloads those. A start so costs one pass over the
parquet parts (about a second for a million rows) and what was done of the shards in work.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pipeline.durable import remove_partials, write_text
from tools.download.finished import JOB_FILE, ShardBook, load_job, shard_name
from tools.download.img2dataset_job import Job
from tools.download.job_process import LOST, PARENT, REFUSED
from tools.download.lock import exclusive
from tools.download.processes import MARK, kill_all_of
from tools.download.progress import Progress

_ROOT = Path(__file__).resolve().parents[2]
_LOG = "download.log"
_CHANGEABLE = frozenset(
    {
        "allow_addresses",
        "deadline_s",
        "distributor",
        "processes",
        "retries",
        "threads",
        "timeout_s",
        "user_agent",
    }
)
_KILLED = (
    "a worker process was killed; its shard is done again. If memory is short, take fewer "
    "--processes or --threads"
)
_NO_SPACE = "No space left on device"
_MAX_IDLE_STARTS = 3
_PAUSES_A_LOOK = 30
_END_S = 10.0
_LEAST_STALL_S = 300.0
_REMOTE_STALL_S = 1800.0
_PARQUET_BUFFER_ROWS = 100


class DownloadFailedError(RuntimeError):
    """The download cannot go on by itself; the text says why and what to do."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        """Remember the signal."""
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When to intervene."""

    stall_s: float | None = None
    """Seconds without a new shard or a byte more before a restart; None: by the job's limits."""
    min_free_bytes: int = 2 * 10**9
    """The download stops when less than this is free where the shards lie."""
    poll_s: float = 1.0
    """Seconds between two looks, at least; more where a look takes long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A complete download."""

    num_rows: int
    """Rows of the table; each is in a shard that is done."""
    num_successes: int
    """Pictures stored."""
    num_shards: int
    """Shards."""
    stored_bytes: int
    """Length of all tars."""
    failures: dict[str, int]
    """Failed rows by cause."""
    num_starts: int
    """How often img2dataset was started by this call; 0: everything was done before."""
    num_quarantined: int
    """Inconsistent shards that this call moved to quarantine and had done again."""
    num_lost_workers: int
    """Worker processes that something killed during this call."""
    seconds: float
    """Wall time of this call."""


def run_download(
    job: Job, folder: Path, *, limits: Limits | None = None, command: Sequence[str] = ()
) -> Outcome:
    """Download until every row of the table is in a consistent shard.

    After any stop, the same call goes on where the last one was.

    Args:
        job: What to download, and how.
        folder: Local folder of job.json, the lock and the log.
        limits: When to intervene.
        command: The process to start, to which the path of job.json is added; by default
            `python -m tools.download.job_process`.

    Raises:
        ValueError: the folder was begun with other options, another process works there, or
            img2dataset cannot run the job.
        DownloadFailedError: no room is left, or starting again does not help.
        KeyboardInterrupt: the user (SIGINT) or, as `Stopped`, the system (SIGTERM) ended it.
    """
    with exclusive(folder), stop_on_sigterm():
        kill_all_of(folder)
        remove_partials(folder)
        check_job(job, folder)
        write_text(folder / JOB_FILE, job.to_json())
        default = (sys.executable, "-m", "tools.download.job_process")
        return _Supervisor(job, folder, limits or Limits(), command or default).run()


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `Stopped` while the block runs, so that what was started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def default_stall_s(job: Job) -> float:
    """Return how long a healthy download may go without a byte more in its shards.

    Failed rows reach the disk a hundred at a time: if all in a row run into their deadline, that
    takes their number over the threads, times the tries with the pauses between them. What is
    written to a remote store is seen only when a shard is complete.
    """
    rounds = math.ceil(_PARQUET_BUFFER_ROWS / job.threads) + 1
    slowest_s = 2 * rounds * (job.retries + 1) * job.deadline_s
    return max(_REMOTE_STALL_S if "://" in job.shards else _LEAST_STALL_S, slowest_s)


def check_job(job: Job, folder: Path) -> None:
    """Refuse to go on with a download in another way than it was begun.

    Raises:
        ValueError: the folder holds a download with other options; the text names them.
    """
    if not (folder / JOB_FILE).exists():
        return
    known = load_job(folder)
    differences = [
        f"{field.name} was {getattr(known, field.name)!r}, now {getattr(job, field.name)!r}"
        for field in dataclasses.fields(Job)
        if field.name not in _CHANGEABLE and getattr(known, field.name) != getattr(job, field.name)
    ]
    if differences:
        raise ValueError(
            f"{folder} was begun with other options ({'; '.join(differences)}): "
            "give the same ones, or another folder"
        )


class _Supervisor:
    """One call of `run_download`."""

    def __init__(self, job: Job, folder: Path, limits: Limits, command: Sequence[str]) -> None:
        self._job = job
        self._folder = folder
        self._limits = limits
        self._command = [*command, str((folder / JOB_FILE).resolve())]
        self._stall_s = limits.stall_s or default_stall_s(job)
        self._book = ShardBook(folder)
        self._progress = Progress(self._book.num_rows)
        self._num_quarantined = self._num_lost = 0

    def run(self) -> Outcome:
        began = time.monotonic()
        starts = idle_starts = 0
        self._tidy()
        while not self._book.complete:
            if idle_starts == _MAX_IDLE_STARTS:
                raise DownloadFailedError(self._why_not())
            num_finished = len(self._book.finished)
            starts += 1
            try:
                reason = self._start()
            finally:
                self._tidy()
            if not self._book.complete:
                self._progress.note(f"starting again: {reason}")
            idle_starts = 0 if len(self._book.finished) > num_finished else idle_starts + 1
        self._progress.end(self._book.finished)
        return self._outcome(starts, time.monotonic() - began)

    def _tidy(self) -> None:
        """Look at all shards and clear away what is not whole; nothing is running."""
        self._book.refresh()
        for state in self._book.set_aside():
            self._num_quarantined += 1
            self._progress.note(f"shard {state.shard_id} to quarantine: {state.problem}")

    def _start(self) -> str:
        """Run img2dataset once, until it ends or must be ended; return why it ended."""
        self._check_space()
        log_path = self._folder / _LOG
        process = None
        try:
            with log_path.open("ab") as log:
                tail = _LogTail(log_path)
                process = subprocess.Popen(
                    self._command,
                    cwd=_ROOT,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            return self._watch(process, tail)
        finally:
            # Also on the way out of this program: whatever ends the watching ends the group. A
            # signal may come before Popen returns; the process is then found by its mark.
            if process:
                _kill_group(process)
            kill_all_of(self._folder)

    def _environment(self) -> dict[str, str]:
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            MARK: str(self._folder.resolve()),
            PARENT: str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            "NO_ALBUMENTATIONS_UPDATE": "1",  # it would ask its home page for news at every import
            "OMP_NUM_THREADS": "1",
        }

    def _watch(self, process: subprocess.Popen[bytes], tail: _LogTail) -> str:
        last: object = None
        moved_s = time.monotonic()
        num_lost = 0
        pause_s = self._limits.poll_s
        while not _ends_within(pause_s, process):
            num_lost += self._read_log(tail, num_lost)
            looked_s = time.monotonic()
            sizes = self._book.listing()
            pause_s = max(self._limits.poll_s, _PAUSES_A_LOOK * (time.monotonic() - looked_s))
            self._check_space()
            if sizes != last:
                last, moved_s = sizes, time.monotonic()
                self._book.refresh(sizes)
            done = {shard_name(number, "tar") for number in self._book.finished}
            growing = [
                size for name, (size, _) in sizes.items() if ".tar" in name and name not in done
            ]
            self._progress.show(self._book.finished, sum(growing))
            still_s = time.monotonic() - moved_s
            if self._book.complete and still_s > _END_S:
                return "it did not end by itself"
            if self._waits_for_lost(num_lost) and still_s > self._grace_s:
                return "it waits for shards whose workers were killed"
            if still_s > self._stall_s:
                return f"nothing moved for {still_s:.0f} s"
        self._read_log(tail, num_lost)
        return f"img2dataset ended with status {process.returncode}, see {self._folder / _LOG}"

    @property
    def _grace_s(self) -> float:
        """How long rows at work may leave no trace, once only lost shards are missing."""
        return min(self._stall_s, 2 * self._job.deadline_s)

    def _waits_for_lost(self, num_lost: int) -> bool:
        return 0 < len(self._book.plan) - len(self._book.finished) <= num_lost

    def _read_log(self, tail: _LogTail, num_before: int) -> int:
        """Return how many workers the new lines report as lost; tell of the first of a start."""
        num_lost = 0
        for line in tail.new_lines():
            if _NO_SPACE in line:
                raise DownloadFailedError(_no_room(self._job.shards))
            if line.startswith(REFUSED):
                raise ValueError(line.removeprefix(REFUSED).strip())
            if LOST in line:  # behind a progress bar of img2dataset, perhaps
                num_lost += 1
                if num_before + num_lost == 1:
                    self._progress.note(f"{_KILLED} ({line.partition(LOST)[2].strip()})")
        self._num_lost += num_lost
        return num_lost

    def _check_space(self) -> None:
        places = [self._folder]
        if "://" not in self._job.shards:
            Path(self._job.shards).mkdir(parents=True, exist_ok=True)
            places.append(Path(self._job.shards))
        for place in places:
            if shutil.disk_usage(place).free < self._limits.min_free_bytes:
                raise DownloadFailedError(_no_room(str(place)))

    def _why_not(self) -> str:
        missing = sorted(self._book.plan.keys() - self._book.finished.keys())
        return (
            f"{len(missing)} shards of {len(self._book.plan)} could not be finished in "
            f"{_MAX_IDLE_STARTS} starts (first: {missing[0]}); {self._folder / _LOG} tells why. "
            "What is done stays; the same command goes on"
        )

    def _outcome(self, starts: int, seconds: float) -> Outcome:
        states = self._book.finished.values()
        failures: Counter[str] = Counter()
        for state in states:
            failures.update(state.failures)
        return Outcome(
            num_rows=self._book.num_rows,
            num_successes=sum(state.num_successes for state in states),
            num_shards=len(states),
            stored_bytes=sum(state.tar_bytes for state in states),
            failures=dict(failures.most_common()),
            num_starts=starts,
            num_quarantined=self._num_quarantined,
            num_lost_workers=self._num_lost,
            seconds=seconds,
        )


class _LogTail:
    """The lines that a growing file gets from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = path.stat().st_size
        self._rest = b""

    def new_lines(self) -> list[str]:
        with self._path.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        self._place += len(text)
        *lines, self._rest = (self._rest + text).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


def _ends_within(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _no_room(place: str) -> str:
    return (
        f"no room is left at {place}: nothing is damaged; make room, and the same command goes on"
    )
