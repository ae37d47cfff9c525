"""Looks before a download: room on the disk, open files, the resolver.

The disk estimate rests on published CC12M crawls: about 31 KB a sample at 256 pixels and quality
95, growing with the area of the picture.
"""

from __future__ import annotations

import resource
import shutil
import socket
import time
from collections import Counter
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from tessera.pipeline.index.database import open_database
from tessera.tools.download.job import Job
from tessera.tools.download.table.prepare import HOST, MEMORY

_SAMPLE_BYTES, _SAMPLE_SIZE = 31_000, 256
_LARGEST_SIZE = 1024  # few pictures of the web are larger, and none is enlarged
_QUALITIES, _QUALITY_FACTORS = (0, 75, 85, 90, 95, 100), (0.2, 0.4, 0.55, 0.7, 1.0, 2.0)
_ROW_BYTES = 900  # metadata, and img2dataset's own copy of the rows
_DESCRIPTORS_PER_FETCH, _DESCRIPTORS_BESIDE = 4, 256
_PROBE_HOSTS, _PROBE_THREADS, _PROBE_S, _SLOW_S = 200, 64, 20.0, 2.0
_NO_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class Finding(NamedTuple):
    """What a look found: a line to print, and what follows from it, or nothing."""

    line: str
    warning: str = ""
    problem: str = ""  # the download must not start


def needed_bytes(num_rows: int, job: Job, success: float) -> int:
    """Bytes that the shards of so many rows take."""
    area = (min(job.image_size, _LARGEST_SIZE) / _SAMPLE_SIZE) ** 2
    quality = float(np.interp(job.encode_quality, _QUALITIES, _QUALITY_FACTORS))
    return round(num_rows * (success * _SAMPLE_BYTES * area * quality + _ROW_BYTES))


def check_disk(needed: int, place: str, *, ignore: bool = False) -> Finding:
    """Compare the room that is needed with what is free; `ignore` makes a warning of a problem."""
    line = f"disk       about {needed / 1e9:.1f} GB are needed at {place}"
    if "://" in place:
        return Finding(line)
    path = Path(place).resolve()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    line += f", {free / 1e9:.1f} GB are free"
    if needed <= free:
        return Finding(line)
    text = (
        f"{line.removeprefix('disk').strip()}: choose another folder, a smaller --image-size or a "
        "lower --quality (--ignore-disk starts all the same)"
    )
    return Finding(line, warning=text) if ignore else Finding(line, problem=text)


def raise_descriptors(threads: int) -> Finding:
    """Raise the soft limit of open files to what the fetches of one process need."""
    needed = _DESCRIPTORS_PER_FETCH * threads + _DESCRIPTORS_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Finding(f"files      {soft} may be open, {needed} are needed")
    if hard != resource.RLIM_INFINITY and hard < needed:
        most = max(1, (hard - _DESCRIPTORS_BESIDE) // _DESCRIPTORS_PER_FETCH)
        return Finding(
            f"files      {hard} may be open at most, {needed} are needed",
            problem=f"the system allows {hard} open files a process and {threads} threads need "
            f"{needed}: take --threads {most}, or raise the limit (ulimit -Hn)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return Finding(f"files      limit of open files raised from {soft} to {needed}")


def sample_hosts(table: Path) -> list[str]:
    """Names of hosts from the beginning of the table, which is a random sample of it."""
    query = f"""SELECT DISTINCT host FROM (
        SELECT {HOST} AS host FROM read_parquet('{table}/part-00000.parquet') LIMIT 65536)
        WHERE host SIMILAR TO '.*[a-z].*' AND host NOT LIKE '[%' ORDER BY host"""  # noqa: S608 - a path of our own
    with open_database(memory=MEMORY) as database:
        hosts = [host for (host,) in database.execute(query).fetchall()]
    return hosts[:: max(1, len(hosts) // _PROBE_HOSTS)][:_PROBE_HOSTS]


def probe_resolver(
    hosts: list[str], *, seconds: float = _PROBE_S, look_up: Any = socket.getaddrinfo
) -> Finding:
    """Ask for many hosts at once and measure; over when the time is, whatever hangs."""
    if not hosts:
        return Finding("resolver   not needed: the table names no hosts")
    found: list[tuple[str, float]] = []
    waiting = iter(hosts)

    def work() -> None:
        for host in waiting:
            began, outcome = time.monotonic(), "found"
            try:
                look_up(host, 443, type=socket.SOCK_STREAM)
            except UnicodeError:  # no name that can exist
                outcome = "do not exist"
            except OSError as error:
                outcome = "do not exist" if error.errno in _NO_HOST else "failed"
            found.append((outcome, time.monotonic() - began))

    # Daemons: a name server that never answers must not keep this program from ending.
    threads = [Thread(target=work, daemon=True) for _ in range(min(_PROBE_THREADS, len(hosts)))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    counts = Counter(outcome for outcome, _ in found)
    counts["without an answer"] = len(hosts) - counts.total()
    slow = float(np.quantile([taken for _, taken in found] or [seconds], 0.95))
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    line = f"resolver   {len(hosts)} hosts: {told}; 95% within {slow * 1e3:.0f} ms"
    failed = counts["failed"] + counts["without an answer"]
    if not counts["found"]:
        return Finding(
            line,
            problem=f"none of {len(hosts)} hosts could be resolved, so every row would fail: check "
            "the network (--no-dns-probe starts all the same)",
        )
    if failed * 20 <= len(hosts) and slow <= _SLOW_S:
        return Finding(line)
    return Finding(
        line,
        warning=f"the resolver is weak under load ({failed} of {len(hosts)} failed, 95% within "
        f"{slow:.1f} s): rows will be lost to it. Use a local caching one (unbound, knot-resolver, "
        "bind9), or fewer --processes and --threads",
    )
