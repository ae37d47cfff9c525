"""What is looked at before a download, and what refuses its start."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.tools.download.__main__ import main
from tessera.tools.download.job import Job
from tessera.tools.download.preflight import (
    check_disk,
    needed_bytes,
    probe_resolver,
    raise_descriptors,
    sample_hosts,
)
from tessera.tools.download.table.prepare import prepare_table

JOB = Job(table="t", shards="s")


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def table(folder: Path) -> Path:
    lines = [f"https://h{n % 30}.example/{n}.jpg\tcaption {n}\n" for n in range(300)]
    lines += ["http://127.0.0.1:8/x.jpg\ta\n", "http://[::1]/y.jpg\tb\n", "nonsense\tc\n"]
    (folder / "t.tsv").write_text("".join(lines))
    return folder / "t.tsv"


def test_a_dry_run_shows_the_table_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file_limit: object
) -> None:
    words = [str(tmp_path / "out"), "--table", str(table(tmp_path)), "--dry-run", "--no-dns-probe"]
    assert main(words) == 0
    captured = capsys.readouterr()
    for text in ("https://h0.example/0.jpg  |  caption 0", "disk  ", "files  ", "plan  "):
        assert text in captured.err
    assert '"num_rows": 303' in captured.out
    assert not (tmp_path / "out/shards").exists()


@pytest.mark.parametrize("words", [
    ["--threads", "0"], ["--quality", "101"], ["--timeout", "0"], ["--retries", "-1"],
    ["--max-aspect-ratio", "0.5"], ["--allow-address", "10.0.0.1/8"], ["--limit", "0"],
    ["--allow-address", "localhost"], ["--user-agent", "a\nHost: b"], ["--expected-rows", "7"],
    ["--expected-success", "65"], ["--delimiter", "two"], ["--encoding", "klingon"],
])  # fmt: skip
def test_options_without_sense_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    arguments = [str(tmp_path / "out"), "--table", str(table(tmp_path)), "--dry-run", *words]
    assert main([*arguments, "--no-dns-probe"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert main(["s3://bucket/x"]) == 2
    assert "--work" in capsys.readouterr().err


def test_the_room_that_cc12m_needs_is_that_of_published_crawls() -> None:
    assert 300e9 < needed_bytes(12_423_374, JOB, 0.863) < 370e9  # 331 GB in img2dataset's account
    large = dataclasses.replace(JOB, image_size=512)
    assert needed_bytes(1000, large, 1.0) > 3.5 * needed_bytes(1000, JOB, 1.0)
    lower = dataclasses.replace(JOB, encode_quality=90)
    assert 0.6 < needed_bytes(1000, lower, 1.0) / needed_bytes(1000, JOB, 1.0) < 0.8


def test_too_little_room_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**9))
    assert check_disk(4 * 10**9, str(tmp_path / "a/b"))[1] == ""
    assert "5.0 GB are free: choose another" in check_disk(6 * 10**9, str(tmp_path / "a/b"))[1]
    assert check_disk(6 * 10**9, "s3://bucket/shards")[1] == ""


def test_soft_limit_of_open_files_is_raised(file_limit: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, file_limit[1]))
    line, problem = raise_descriptors(64)
    assert (problem, "raised from 300 to 512" in line) == ("", True)
    assert raise_descriptors(10) == ("files      512 may be open, 296 are needed", "")


def test_hard_limit_of_open_files_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (400, 400))
    assert "take --threads 36" in raise_descriptors(64)[1]
    assert raise_descriptors(36)[1] == ""


def test_hosts_are_names_and_distinct(tmp_path: Path) -> None:
    prepare_table(str(table(tmp_path)), tmp_path / "table")
    hosts = sample_hosts(tmp_path / "table")
    assert sorted(hosts) == sorted(["nonsense"][:0] + [f"h{n}.example" for n in range(30)])


def look_up(host: str, *_args: object, **_options: object) -> list[object]:
    errors = {"none": socket.EAI_NONAME, "again": socket.EAI_AGAIN}
    if host.startswith("bad"):
        raise UnicodeError("label empty or too long")
    for name, number in errors.items():
        if host.startswith(name):
            raise socket.gaierror(number, "no")
    return []


def test_outcomes_of_the_resolver_are_told_apart() -> None:
    hosts = [f"{kind}{n}" for kind in ("good", "none", "again", "bad") for n in range(50)]
    line, warning, problem = probe_resolver(hosts, seconds=10, look_up=look_up)
    assert "200 hosts: 50 found, 100 do not exist, 50 failed" in line
    assert ("50 of 200 failed" in warning, problem) == (True, "")
    assert probe_resolver(["good"] * 30, look_up=look_up)[1:] == ("", "")
    assert "none of 3 hosts" in probe_resolver(["none"] * 3, look_up=look_up)[2]
    assert probe_resolver([])[1:] == ("", "")


def test_the_probe_asks_many_at_once_and_ends_in_time() -> None:
    release, active = threading.Event(), []

    def hangs(host: str, *_args: object, **_options: object) -> None:
        active.append(host)
        release.wait(30)

    started = time.monotonic()
    line, _, problem = probe_resolver([f"h{n}" for n in range(200)], seconds=0.5, look_up=hangs)
    assert time.monotonic() - started < 5
    assert "200 without an answer" in line
    assert "every row would fail" in problem
    assert len(active) == 64
    release.set()
