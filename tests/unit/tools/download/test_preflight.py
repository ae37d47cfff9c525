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

JOB = Job(table="t", shards="s")


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def table(tmp_path: Path) -> str:
    lines = [f"https://h{n % 30}.example/{n}.jpg\tcaption {n}\n" for n in range(300)]
    lines += ["http://127.0.0.1:8/x.jpg\ta\n", "http://[::1]/y.jpg\tb\n", "nonsense\tc\n"]
    (tmp_path / "t.tsv").write_text("".join(lines))
    return str(tmp_path / "t.tsv")


def test_a_dry_run_shows_the_table_and_starts_nothing(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str], file_limit: object
) -> None:
    out = tmp_path / "out"
    assert main([str(out), "--table", table, "--dry-run", "--no-dns-probe"]) == 0
    captured = capsys.readouterr()
    for text in ("https://h0.example/0.jpg  |  caption 0", "disk  ", "files  ", "plan  "):
        assert text in captured.err
    assert '"num_rows": 303' in captured.out
    assert not (out / "shards").exists()
    assert sorted(sample_hosts(out / "table")) == sorted(f"h{n}.example" for n in range(30))


@pytest.mark.parametrize("words", [
    ["--threads", "0"], ["--quality", "101"], ["--timeout", "0"], ["--retries", "-1"],
    ["--max-aspect-ratio", "0.5"], ["--allow-address", "10.0.0.1/8"], ["--limit", "0"],
    ["--allow-address", "localhost"], ["--user-agent", "a\nHost: b"], ["--expected-rows", "7"],
    ["--expected-success", "65"], ["--delimiter", "two"], ["--encoding", "klingon"],
])  # fmt: skip
def test_options_without_sense_are_refused_by_name(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    arguments = [str(tmp_path / "out"), "--table", table, "--dry-run", *words]
    assert main([*arguments, "--no-dns-probe"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert main(["s3://bucket/x"]) == 2
    assert "--work" in capsys.readouterr().err


def test_the_room_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 300e9 < needed_bytes(12_423_374, JOB, 0.863) < 370e9  # 331 GB in img2dataset's account
    large = dataclasses.replace(JOB, image_size=512)
    assert needed_bytes(1000, large, 1.0) > 3.5 * needed_bytes(1000, JOB, 1.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**9))
    place = str(tmp_path / "a/b")
    assert check_disk(4 * 10**9, place).problem == ""
    assert "5.0 GB are free: choose another" in check_disk(6 * 10**9, place).problem
    ignored = check_disk(6 * 10**9, place, ignore=True)
    assert ("choose another" in ignored.warning, ignored.problem) == (True, "")
    assert check_disk(6 * 10**9, "s3://bucket/shards").problem == ""


def test_limits_of_open_files(file_limit: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, file_limit[1]))
    found = raise_descriptors(64)
    assert (found.problem, "raised from 300 to 512" in found.line) == ("", True)
    assert raise_descriptors(10).line == "files      512 may be open, 296 are needed"
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (400, 400))
    assert "take --threads 36" in raise_descriptors(64).problem
    assert raise_descriptors(36).problem == ""


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
    found = probe_resolver(hosts, seconds=10, look_up=look_up)
    for text in ("200 hosts", "50 found", "100 do not exist", "50 failed"):
        assert text in found.line
    assert ("50 of 200 failed" in found.warning, found.problem) == (True, "")
    assert probe_resolver(["good"] * 30, look_up=look_up)[1:] == ("", "")
    assert "none of 3 hosts" in probe_resolver(["none"] * 3, look_up=look_up).problem
    assert probe_resolver([])[1:] == ("", "")


def test_the_probe_asks_many_at_once_and_ends_in_time() -> None:
    release, active = threading.Event(), []

    def hangs(host: str, *_args: object, **_options: object) -> None:
        active.append(host)
        release.wait(30)

    started = time.monotonic()
    found = probe_resolver([f"h{n}" for n in range(200)], seconds=0.5, look_up=hangs)
    assert time.monotonic() - started < 5
    assert "200 without an answer" in found.line
    assert "every row would fail" in found.problem
    assert len(active) == 64
    release.set()
