"""Looks before a download: room on the disk, file descriptors, the resolver, the first rows.

The disk estimate rests on published CC12M crawls: about 31 KB a sample at 256 pixels and quality
95, growing with the area of the picture. It is an estimate; a full disk stops a download without
damage, but later than one would like to know.
"""

from __future__ import annotations

import ipaddress
import queue
import resource
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.download.img2dataset_job import Job
from tools.download.table.prepare import TableSummary, table_batches
from tools.download.table.spread import host_of

EXPECTED_SUCCESS = 0.65
"""Share of CC12M's links alive in 2025 and 2026: 62 to 64 %, and a little room."""
_SAMPLE_BYTES = 31_000
_SAMPLE_SIZE = 256
_LARGEST_SIZE = 1024  # few pictures of the web are larger, and none is enlarged
_QUALITIES = (0, 75, 85, 90, 95, 100)
_QUALITY_FACTORS = (0.2, 0.4, 0.55, 0.7, 1.0, 2.0)
_FEATHER_ROW_BYTES = 500
_METADATA_ROW_BYTES = 400
_DESCRIPTORS_PER_THREAD = 4
_DESCRIPTORS_BESIDE = 256
_PROBE_THREADS = 64
_NO_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_SLOW_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskEstimate:
    """How much room a download needs."""

    samples: int
    """Pictures expected from the rows still to do."""
    sample_bytes: int
    """Bytes of one in its tar."""
    shards_bytes: int
    """Tars and metadata."""
    repack_bytes: int
    """A second copy of the tars while they are repacked; 0 without that."""
    temporary_bytes: int
    """img2dataset's copy of the rows, gone at the end."""

    @property
    def total_bytes(self) -> int:
        """All of it at once."""
        return self.shards_bytes + self.repack_bytes + self.temporary_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolverProbe:
    """What the resolver did with many hosts of the table at once."""

    num_hosts: int
    """Hosts asked for."""
    answered: int
    """Hosts with an address."""
    no_host: int
    """Hosts that do not exist; some always do not."""
    temporary: int
    """Hosts for which the resolver failed."""
    unanswered: int
    """Hosts without an answer when the time was over."""
    p50_s: float
    """Median time of an answer, in seconds."""
    p95_s: float
    """95th percentile of it."""

    def describe(self) -> str:
        """A line to print."""
        if not self.num_hosts:
            return "resolver   not needed: the table names no hosts"
        return (
            f"resolver   {self.num_hosts} hosts: {self.answered} found, {self.no_host} do not "
            f"exist, {self.temporary} failed, {self.unanswered} without an answer; "
            f"median {self.p50_s * 1e3:.0f} ms, 95% within {self.p95_s * 1e3:.0f} ms"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What was found before the start."""

    lines: tuple[str, ...]
    """To print: the table with its first rows, then each check."""
    warnings: tuple[str, ...]
    """What a person should look at; the download may start."""
    problems: tuple[str, ...]
    """Why the download must not start; empty when it may."""
    disk: DiskEstimate
    """Room needed."""
    free_bytes: int | None
    """Room there is; None where it cannot be seen."""
    resolver: ResolverProbe | None
    """None when the probe was skipped."""


def check(
    table: TableSummary,
    job: Job,
    *,
    rows_done: int = 0,
    repack: bool = False,
    expected_success: float = EXPECTED_SUCCESS,
    ignore_disk: bool = False,
    probe_dns: bool = True,
    probe_hosts: int = 200,
    probe_seconds: float = 20.0,
) -> Preflight:
    """Look at everything that lets a long download fail late.

    May raise this process's soft limit of open files, which its children inherit.

    Args:
        table: the table's summary.
        job: what is to be run; `job.table` holds the table.
        rows_done: rows in finished shards, which need no more room.
        repack: the shards are repacked afterwards, into a second copy.
        expected_success: share of the rows that become pictures, 0 to 1.
        ignore_disk: too little room is a warning, not a problem.
        probe_dns: ask the resolver for hosts of the table.
        probe_hosts: how many, at most.
        probe_seconds: the probe never takes longer.

    Raises:
        ValueError: `expected_success` is no share.
    """
    if not 0 <= expected_success <= 1:
        raise ValueError(f"expected_success must be 0 to 1, got {expected_success}")
    lines, warnings, problems = table.describe(), [], []
    disk = estimate_disk(table.num_rows - rows_done, job, expected_success, repack=repack)
    free = free_bytes(job.shards)
    lines += _disk_lines(disk, free, expected_success)
    if free is not None and disk.total_bytes > free:
        message = (
            f"about {disk.total_bytes / 1e9:.1f} GB are needed at {job.shards} and "
            f"{free / 1e9:.1f} GB are free: choose another folder, a smaller --image-size or a "
            "lower --quality"
        )
        (warnings if ignore_disk else problems).append(message)
    elif free is not None and disk.total_bytes > 0.8 * free:
        warnings.append("the download will fill more than 80 % of the free disk")
    line, problem = raise_descriptors(job.threads)
    lines.append(line)
    problems += [problem] if problem else []
    probe = None
    if probe_dns:
        hosts = sample_hosts(Path(job.table), probe_hosts)
        probe = probe_resolver(hosts, seconds=probe_seconds)
        lines.append(probe.describe())
        found_warnings, found_problems = _judge(probe)
        warnings += found_warnings
        problems += found_problems
    else:
        lines.append("resolver   not probed, as asked")
    lines += [f"warning    {text}" for text in warnings]
    return Preflight(
        lines=tuple(lines),
        warnings=(*table.warnings, *warnings),
        problems=tuple(problems),
        disk=disk,
        free_bytes=free,
        resolver=probe,
    )


def estimate_disk(num_rows: int, job: Job, success: float, *, repack: bool) -> DiskEstimate:
    """Room that so many rows need.

    Args:
        num_rows: rows still to do.
        job: its image size and quality matter.
        success: share of the rows that become pictures.
        repack: a second copy of the tars is made.
    """
    area = (min(job.image_size, _LARGEST_SIZE) / _SAMPLE_SIZE) ** 2
    quality = float(np.interp(job.encode_quality, _QUALITIES, _QUALITY_FACTORS))
    sample_bytes = round(_SAMPLE_BYTES * area * quality)
    samples = round(num_rows * success)
    return DiskEstimate(
        samples=samples,
        sample_bytes=sample_bytes,
        shards_bytes=samples * sample_bytes + num_rows * _METADATA_ROW_BYTES,
        repack_bytes=samples * sample_bytes if repack else 0,
        temporary_bytes=num_rows * _FEATHER_ROW_BYTES,
    )


def free_bytes(place: str) -> int | None:
    """Room at a folder that may not exist yet; None for a remote one."""
    if "://" in place:
        return None
    path = Path(place).resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def raise_descriptors(threads: int) -> tuple[str, str | None]:
    """Raise the soft limit of open files to what the threads of one process need.

    Returns:
        A line to print, and the problem if the hard limit is too low.
    """
    needed = _DESCRIPTORS_PER_THREAD * threads + _DESCRIPTORS_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= needed
    if enough:
        return f"files      {soft} may be open, {needed} are needed", None
    if hard != resource.RLIM_INFINITY and hard < needed:
        line = f"files      {hard} may be open at most, {needed} are needed"
        fix = (hard - _DESCRIPTORS_BESIDE) // _DESCRIPTORS_PER_THREAD
        advice = f"take --threads {fix}" if fix > 0 else "raise it"
        return line, (
            f"the system allows {hard} open files a process and {threads} threads need {needed}: "
            f"{advice}, or raise the limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return f"files      limit of open files raised from {soft} to {needed}", None


def sample_hosts(table: Path, limit: int) -> list[str]:
    """Names of hosts from the beginning of the table, which is a random sample of it."""
    hosts: dict[str, None] = {}
    for batch in table_batches(table):
        for host in host_of(batch.column("url")).to_pylist():
            if host and not _is_address(host):
                hosts[host] = None
            if len(hosts) >= limit:
                return list(hosts)
    return list(hosts)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _look_up(host: str) -> object:
    return socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)


def probe_resolver(
    hosts: list[str], *, seconds: float, look_up: Callable[[str], object] = _look_up
) -> ResolverProbe:
    """Ask for many hosts at once and measure; over when the time is, whatever hangs.

    Args:
        hosts: names.
        seconds: most time to take.
        look_up: raises `OSError` (`socket.gaierror` with its code) or `UnicodeError` on failure.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
    for host in hosts:
        waiting.put(host)

    def work() -> None:
        while True:
            try:
                host = waiting.get_nowait()
            except queue.Empty:
                return
            started = time.monotonic()
            outcome = _outcome_of(host, look_up)
            results.put((outcome, time.monotonic() - started))

    for _ in range(min(_PROBE_THREADS, len(hosts))):
        # Daemons: a name server that never answers must not keep this program from ending.
        threading.Thread(target=work, daemon=True).start()
    deadline = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    times: list[float] = []
    while outcomes.total() < len(hosts):
        try:
            outcome, took = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        outcomes[outcome] += 1
        times.append(took)
    while not waiting.empty():  # the threads that still run take no more
        try:
            waiting.get_nowait()
        except queue.Empty:
            break
    return ResolverProbe(
        num_hosts=len(hosts),
        answered=outcomes["answered"],
        no_host=outcomes["no_host"],
        temporary=outcomes["temporary"],
        unanswered=len(hosts) - outcomes.total(),
        p50_s=float(np.quantile(times, 0.5)) if times else 0.0,
        p95_s=float(np.quantile(times, 0.95)) if times else 0.0,
    )


def _outcome_of(host: str, look_up: Callable[[str], object]) -> str:
    try:
        look_up(host)
    except UnicodeError:  # no name that can exist, such as one with an empty label
        return "no_host"
    except OSError as error:
        return "no_host" if error.errno in _NO_HOST else "temporary"
    return "answered"


def _judge(probe: ResolverProbe) -> tuple[list[str], list[str]]:
    """Warnings and problems that follow from a probe."""
    if not probe.num_hosts:
        return [], []
    if not probe.answered:
        return [], [
            f"none of {probe.num_hosts} hosts could be resolved, so every row would fail: check "
            "the network (--no-dns-probe starts all the same)"
        ]
    failed = probe.temporary + probe.unanswered
    if failed * 20 > probe.num_hosts or probe.p95_s > _SLOW_S:
        return [
            f"the resolver is weak under load ({failed} of {probe.num_hosts} failed, 95% within "
            f"{probe.p95_s:.1f} s): rows will be lost to it. Use a local caching one (unbound, "
            "knot-resolver, bind9), or fewer --processes and --threads"
        ], []
    return [], []


def _disk_lines(disk: DiskEstimate, free: int | None, success: float) -> list[str]:
    room = "free room cannot be seen there" if free is None else f"{free / 1e9:.1f} GB free"
    parts = f"{disk.shards_bytes / 1e9:.1f} GB of shards"
    if disk.repack_bytes:
        parts += f" + {disk.repack_bytes / 1e9:.1f} GB to repack"
    return [
        f"expected   about {disk.samples} pictures ({success:.0%} of the rows), "
        f"{disk.sample_bytes / 1e3:.0f} KB each",
        f"disk       {parts} + {disk.temporary_bytes / 1e9:.1f} GB for a while; {room}",
    ]
