"""Jobs that are disturbed on purpose: started with a mark, measured, killed, orphans found.

Every process that a job starts inherits the mark in its environment, so that whoever is left over
is found whatever became of its parents (Linux).
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_MARK = "TESSERA_FAULT_JOB"
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What the processes of a job hold at one moment, all together."""

    num_processes: int
    """Living processes."""
    rss_mib: float
    """Resident memory, MiB; pages that two processes share count twice."""
    pss_mib: float
    """Resident memory, MiB; pages that two processes share count once."""
    own_mib: float
    """Memory that no file backs, MiB: what a leak would fill, whoever else maps the libraries."""
    num_threads: int
    """Threads."""
    num_handles: int
    """Open file descriptors."""


class Job:
    """A command under test and everything that it started."""

    def __init__(self, command: Sequence[object], *, environment: dict[str, str] | None = None):
        """Start it from the checkout's root, in a session of its own.

        Args:
            command: program and words.
            environment: set on top of this process's own.
        """
        self.mark = uuid.uuid4().hex
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {}), _MARK: self.mark},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        """What it wrote so far, both streams."""
        # The job shares this file's offset: it is read beside it, never sought.
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode("utf-8", errors="replace")

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def pids(self) -> list[int]:
        """Its living processes, the first one included."""
        return [pid for pid in map(_number, Path("/proc").iterdir()) if self._is_mine(pid)]

    def ranks(self) -> list[int]:
        """Its processes under torchrun, by rank."""
        found = {}
        for pid in self.pids():
            rank = _environment(pid).get(b"RANK")
            if rank is not None and pid != self.process.pid:
                found.setdefault(int(rank), pid)
        return [found[rank] for rank in sorted(found)]

    def wait(self, limit_s: float) -> int:
        """Its exit status; one that takes longer than `limit_s` is a TimeoutExpired."""
        return self.process.wait(limit_s)

    def wait_for(self, reached: Callable[[], bool], limit_s: float) -> bool:
        """Wait until something is the case; whether it was before the job ended.

        Raises:
            TimeoutError: neither happened; holds the output.
        """
        give_up = time.monotonic() + limit_s
        while not reached():
            if self.process.poll() is not None:
                return reached()
            if time.monotonic() > give_up:
                raise TimeoutError(f"not reached in {limit_s} s:\n{self.output[-4000:]}")
            time.sleep(_POLL_S)
        return True

    def signal_all(self, signum: int) -> None:
        """Send a signal to every process of the job."""
        for pid in self.pids():
            send(pid, signum)

    def kill(self) -> None:
        """SIGKILL to every process of the job, until none is left."""
        while self.pids():
            self.signal_all(signal.SIGKILL)
            self.process.poll()
            time.sleep(_POLL_S)
        self.process.wait()

    def orphans(self, patience_s: float = 10.0) -> list[int]:
        """Processes that are still there so long after the first one ended."""
        give_up = time.monotonic() + patience_s
        while (left := self.pids()) and time.monotonic() < give_up:
            time.sleep(_POLL_S)
        return left

    def usage(self) -> Usage:
        """What its processes hold now."""
        pids = self.pids()
        rollups = [_rollup(pid) for pid in pids]
        return Usage(
            num_processes=len(pids),
            rss_mib=sum(r.get("Rss", 0) for r in rollups) / 1024,
            pss_mib=sum(r.get("Pss", 0) for r in rollups) / 1024,
            own_mib=sum(r.get("Pss_Anon", 0) + r.get("Pss_Shmem", 0) for r in rollups) / 1024,
            num_threads=sum(_count(pid, "task") for pid in pids),
            num_handles=sum(_count(pid, "fd") for pid in pids),
        )

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        self._output.close()

    def _is_mine(self, pid: int) -> bool:
        return pid > 0 and _environment(pid).get(_MARK.encode()) == self.mark.encode()


@contextmanager
def running(
    command: Sequence[object], *, environment: dict[str, str] | None = None
) -> Iterator[Job]:
    """A job that ends with the block, whatever happens in it."""
    job = Job(command, environment=environment)
    try:
        yield job
    finally:
        job.close()


def send(pid: int, signum: int) -> None:
    """Send a signal to a process, unless it is gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def _number(place: Path) -> int:
    return int(place.name) if place.name.isdecimal() else 0


def _environment(pid: int) -> dict[bytes, bytes]:
    """Of a living process; that of one which ended is empty."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def _rollup(pid: int) -> dict[str, int]:
    """Memory of a process by kind, KiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return {}
    return {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}


def _count(pid: int, what: str) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/{what}").iterdir())
    except OSError:
        return 0
