"""What is looked at before a download, and what stops it."""

from __future__ import annotations

import dataclasses
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.download import preflight
from tools.download.img2dataset_job import Job
from tools.download.preflight import (
    check,
    estimate_disk,
    free_bytes,
    probe_resolver,
    raise_descriptors,
    sample_hosts,
)
from tools.download.table.prepare import TableSummary, prepare_table


@pytest.fixture
def table(tmp_path: Path) -> TableSummary:
    lines = [f"https://h{n % 30}.example/{n}.jpg\tcaption {n}\n" for n in range(300)]
    lines += ["http://127.0.0.1:8/x.jpg\ta\n", "http://[::1]/y.jpg\tb\n", "nonsense\tc\n"]
    (tmp_path / "t.tsv").write_text("".join(lines))
    return prepare_table(tmp_path / "t.tsv", tmp_path / "table", tell=lambda _line: None)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(table=str(tmp_path / "table"), shards=str(tmp_path / "out/shards"), processes=1)


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_good_start_shows_the_first_rows(table: TableSummary, job: Job, file_limit: object) -> None:
    found = check(table, job, probe_dns=False)
    assert not found.problems
    assert not found.warnings
    text = "\n".join(found.lines)
    assert "https://h0.example/0.jpg" in text
    assert "caption 0" in text
    assert "not probed" in text
    assert found.resolver is None
    assert found.free_bytes


def test_small_disk_refuses_the_start(
    table: TableSummary, job: Job, monkeypatch: pytest.MonkeyPatch, file_limit: object
) -> None:
    needed = estimate_disk(table.num_rows, job, 0.65, repack=False).total_bytes
    monkeypatch.setattr(preflight, "free_bytes", lambda _place: needed - 1)
    found = check(table, job, probe_dns=False)
    assert "GB are needed" in found.problems[0]
    assert not check(table, job, probe_dns=False, ignore_disk=True).problems
    assert not check(table, job, probe_dns=False, rows_done=10).problems
    assert check(table, job, probe_dns=False, rows_done=10, repack=True).problems
    monkeypatch.setattr(preflight, "free_bytes", lambda _place: round(needed * 1.1))
    found = check(table, job, probe_dns=False)
    assert not found.problems
    assert "more than 80 %" in found.warnings[0]
    assert found.lines[-1].endswith(found.warnings[0])
    with pytest.raises(ValueError, match="0 to 1"):
        check(table, job, expected_success=65)


def test_estimate_of_cc12m_is_that_of_published_crawls(job: Job) -> None:
    estimate = estimate_disk(12_423_374, job, 0.863, repack=False)  # 10.7 M pictures
    assert 300e9 < estimate.shards_bytes < 360e9  # 331 GB in img2dataset's own account
    assert 5e9 < estimate.temporary_bytes < 7e9
    large = estimate_disk(1000, dataclasses.replace(job, image_size=512), 1.0, repack=True)
    assert large.sample_bytes == 4 * estimate.sample_bytes
    assert large.repack_bytes == 1000 * large.sample_bytes
    lower = estimate_disk(1000, dataclasses.replace(job, encode_quality=90), 1.0, repack=False)
    assert 0.6 < lower.sample_bytes / estimate.sample_bytes < 0.8


def test_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(str(tmp_path / "a/b/c")) == pytest.approx(free_bytes(str(tmp_path)), rel=0.1)
    assert free_bytes("s3://bucket/shards") is None


def test_soft_limit_of_open_files_is_raised(file_limit: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, file_limit[1]))
    line, problem = raise_descriptors(64)
    assert problem is None
    assert "raised from 300 to 512" in line
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512
    assert raise_descriptors(10) == ("files      512 may be open, 296 are needed", None)


def test_hard_limit_of_open_files_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (400, 400))
    _line, problem = raise_descriptors(64)
    assert problem is not None
    assert "take --threads 36" in problem
    assert raise_descriptors(36)[1] is None


def test_hosts_are_names_and_distinct(table: TableSummary, job: Job) -> None:
    hosts = sample_hosts(Path(job.table), 100)
    assert sorted(hosts) == sorted(f"h{n}.example" for n in range(30))
    assert len(sample_hosts(Path(job.table), 7)) == 7


def test_outcomes_of_the_resolver_are_told_apart() -> None:
    def look_up(host: str) -> object:
        if host.startswith("none"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host.startswith("again"):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host.startswith("bad"):
            raise UnicodeError("label empty or too long")
        time.sleep(0.01)
        return []

    hosts = [f"{kind}{n}" for kind in ("good", "none", "again", "bad") for n in range(50)]
    found = probe_resolver(hosts, seconds=10, look_up=look_up)
    assert (found.num_hosts, found.answered, found.no_host) == (200, 50, 100)
    assert (found.temporary, found.unanswered) == (50, 0)
    assert 0 <= found.p50_s <= found.p95_s < 5


def test_probe_asks_many_at_once_and_ends_in_time() -> None:
    release = threading.Event()
    active = []

    def hangs(host: str) -> object:
        active.append(host)
        release.wait(30)
        return []

    started = time.monotonic()
    found = probe_resolver([f"h{n}" for n in range(200)], seconds=0.5, look_up=hangs)
    assert time.monotonic() - started < 5
    assert (found.unanswered, found.answered) == (200, 0)
    assert len(active) == 64  # and no more once the time is over
    release.set()
    time.sleep(0.2)
    assert len(active) == 64


@pytest.mark.parametrize(
    ("outcome", "problem", "warning"),
    [(None, False, False), (socket.EAI_AGAIN, True, False), (socket.EAI_NONAME, True, False)],
)
def test_resolver_that_finds_nothing_refuses_the_start(
    table: TableSummary,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    file_limit: object,
    outcome: int | None,
    problem: bool,
    warning: bool,
) -> None:
    def getaddrinfo(*_args: object, **_options: object) -> list[object]:
        if outcome is not None:
            raise socket.gaierror(outcome, "no")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = check(table, job, probe_seconds=5)
    assert found.resolver is not None
    assert found.resolver.num_hosts == 30
    assert bool(found.problems) == problem
    assert bool(found.warnings) == warning


def test_weak_resolver_is_warned_of(
    table: TableSummary, job: Job, monkeypatch: pytest.MonkeyPatch, file_limit: object
) -> None:
    def getaddrinfo(host: str, *_args: object, **_options: object) -> list[object]:
        if host in {"h3.example", "h4.example", "h5.example"}:
            raise socket.gaierror(socket.EAI_AGAIN, "later")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = check(table, job, probe_seconds=5)
    assert not found.problems
    assert "3 of 30 failed" in found.warnings[0]
