"""The second pass: which rows it takes, that it is done once, and how it resumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.tools import retry_failed
from tessera.tools.download import run as run_module
from tessera.tools.download.job import Job
from tessera.tools.download.run import exclusive, run_download
from tessera.tools.download.shards import ShardBook
from tessera.tools.download.table.prepare import prepare_table
from tests import download_shards
from tests.download_shards import write_shard

FIRST = {
    2: ("failed_to_download", "forbidden: HTTP 403"),
    3: ("failed_to_download", "not_found: HTTP 404"),
    5: ("failed_to_download", "timeout: no answer"),
    7: ("failed_to_download", "server_error: HTTP 503"),
}
SECOND = {7: ("failed_to_download", "connection: reset"), 2: ("failed_to_download", "tls: no")}

Retry = Callable[..., dict]


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[str, str]]:
    """Outcome by the last digit of the row id; a test changes it between passes."""
    current = dict(FIRST)
    monkeypatch.setattr(download_shards, "FAILS", current)
    return current


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs run by the tool, with shards written in place of a download."""
    jobs: list[Job] = []

    def run(job: Job, folder: Path) -> dict:
        jobs.append(job)
        if not (folder / "job.json").exists():
            (folder / "job.json").write_text(job.to_json())
        Path(job.shards).mkdir(exist_ok=True, parents=True)
        book = ShardBook(folder)
        book.refresh()
        for number in book.plan.keys() - book.finished.keys():
            write_shard(folder, number)
        return run_download(job, folder)

    monkeypatch.setattr(run_module, "run_download", run)
    return jobs


@pytest.fixture
def out(tmp_path: Path, outcomes: dict[int, tuple[str, str]]) -> Path:
    """A finished first pass of 95 rows in shards of 20; row 4 of the source is bad."""
    ids = range(96)
    source = {
        "url": [f"https://h{n % 5}.example/{n}.jpg" for n in ids],
        "text": [f'caption {n}\t"x' if n != 4 else "" for n in ids],
        "score": [n / 2 for n in ids],
    }
    pq.write_table(pa.table(source), tmp_path / "source.parquet")
    folder = tmp_path / "out"
    summary = prepare_table(str(tmp_path / "source.parquet"), folder / "table", rows_per_part=60)
    places = {"table": str(folder / "table"), "shards": str(folder / "shards")}
    limits = {"processes": 1, "threads": 16, "timeout_s": 5, "deadline_s": 20}
    extra = tuple(summary.extra_columns)
    job = Job(**places, **limits, samples_per_shard=20, extra_columns=extra)  # type: ignore[arg-type]
    (folder / "job.json").write_text(job.to_json())
    (folder / "shards").mkdir()
    for number in ShardBook(folder).plan:
        write_shard(folder, number)
    return folder


@pytest.fixture
def retry(out: Path, jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> Retry:
    """Runs the tool; returns its JSON line and what it said."""

    def run(*words: object) -> dict:
        status = retry_failed.main([str(out), *map(str, words)])
        said = capsys.readouterr()
        lines = said.out.splitlines()
        result = json.loads(lines[-1]) if lines and status == 0 else {}
        return {"status": status, "said": said.out + said.err, **result}

    return run


def rows_of(table: Path) -> dict[int, dict[str, object]]:
    rows = [row for path in sorted(table.glob("part-*")) for row in pq.read_table(path).to_pylist()]
    return {row["row_id"]: row for row in rows}


def ending(*digits: int) -> set[int]:
    return {n for n in range(96) if n % 10 in digits and n != 4}


def test_rows_that_may_succeed_are_tried_again_more_patiently(
    out: Path, jobs: list[Job], outcomes: dict, retry: Retry
) -> None:
    outcomes.clear()
    outcomes.update(SECOND)
    result = retry()
    first, again = rows_of(out / "table"), rows_of(out / "retry-01/table")
    assert set(again) == ending(5, 7)
    assert all(first[number] == row for number, row in again.items())  # further columns too
    assert (result["num_rows"], result["num_successes"]) == (len(again), len(ending(5)))
    assert result["failures"] == {"connection": len(ending(7))}
    assert result["num_still_retryable"] == len(ending(7))
    (job,) = jobs
    assert (job.threads, job.timeout_s, job.deadline_s, job.processes) == (4, 10, 60, 1)
    assert (job.extra_columns, job.shards) == (("score",), str(out / "retry-01/shards"))
    same = retry()
    assert (same["nothing_to_retry"], same["num_still_retryable"]) == (True, len(ending(7)))
    assert not (out / "retry-02").exists()


def test_options_change_the_job(out: Path, jobs: list[Job], retry: Retry) -> None:
    refused = retry("--threads", 0)
    assert (refused["status"], "--threads must be at least 1" in refused["said"]) == (2, True)
    assert not (out / "retry-01").exists()
    words = ["--threads", 9, "--timeout", 1, "--deadline", 2, "--retries", 0, "--processes", 3]
    retry(*words, "--user-agent", "me")
    (job,) = jobs
    assert (job.threads, job.timeout_s, job.deadline_s) == (9, 1, 2)
    assert (job.processes, job.retries, job.user_agent) == (3, 0, "me")


def test_again_takes_what_still_fails_by_its_last_outcome(
    out: Path, outcomes: dict, retry: Retry
) -> None:
    outcomes.clear()
    outcomes.update(SECOND)
    retry("--also", "forbidden")
    assert set(rows_of(out / "retry-01/table")) == ending(2, 5, 7)
    retry("--again")
    assert set(rows_of(out / "retry-02/table")) == ending(7)  # tls is not retryable
    outcomes.clear()
    retry("--again", "--also", "tls")
    assert set(rows_of(out / "retry-03/table")) == ending(2, 7)
    last = retry("--again")  # all are there now
    assert (last["nothing_to_retry"], last["num_still_retryable"]) == (True, 0)
    stored = [
        row["row_id"]
        for path in (*out.glob("shards/*.parquet"), *out.glob("retry-*/shards/*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["status"] == "success"
    ]
    assert sorted(stored) == sorted(ending(*range(10)) - ending(3))
    with pytest.raises(SystemExit) as stop:
        retry("--also", "sunshine")
    assert stop.value.code == 2


@pytest.mark.parametrize("left", ["a table", "a job", "half of the shards", "no table"])
def test_an_unfinished_pass_is_resumed_for_its_rows(
    out: Path, jobs: list[Job], outcomes: dict, retry: Retry, left: str
) -> None:
    retry("--also", "not_found")
    table = rows_of(out / "retry-01/table")
    for path in list((out / "retry-01/shards").iterdir()):
        if left != "half of the shards" or path.name.startswith("00000"):
            path.unlink()
    if left in ("a table", "no table"):
        (out / "retry-01/job.json").unlink()
    if left == "no table":
        shutil.rmtree(out / "retry-01/table")
        (out / "retry-01/.table.partial").mkdir()
    also = ["--also", "forbidden", "not_found"]
    result = retry(*also)
    assert (result["status"], result["pass"]) == (0, 1)
    if left == "no table":  # it was begun anew, with more causes
        assert set(rows_of(out / "retry-01/table")) == ending(2, 3, 5, 7)
        return
    assert rows_of(out / "retry-01/table") == table
    assert f"begun without {len(ending(2))} rows" in result["said"]
    assert "--again --also forbidden not_found" in result["said"]
    assert result["num_still_retryable"] == len(ending(2, 3, 5, 7))


def test_wrong_folders_and_tables_are_refused(out: Path, jobs: list[Job], retry: Retry) -> None:
    with exclusive(out):
        command = [sys.executable, "tools/retry_failed.py", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"at work in {out} (process {os.getpid()} on" in done.stderr
    retry()
    (out / "retry-01").rename(out / "retry-02")
    assert "one is missing" in retry()["said"]
    shutil.rmtree(out / "retry-02")
    stats = out / "shards/00002_stats.json"
    stats.rename(out / "aside")
    assert "is not finished" in retry()["said"]
    (out / "aside").rename(stats)
    (out / "table/table.json").unlink()
    assert "table.json" in retry()["said"]
    (out / "job.json").unlink()
    refused = retry()
    assert (refused["status"], "no download was begun" in refused["said"]) == (2, True)


def test_it_continues_in_the_environment_of_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    def execv(_: object, words: list[str]) -> None:
        started.append(words)
        raise SystemExit(0)

    monkeypatch.setattr(retry_failed.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(retry_failed.os, "execv", execv)
    monkeypatch.setattr(retry_failed.sys, "argv", ["tools/retry_failed.py", "OUT"])
    monkeypatch.setenv("TESSERA_DOWNLOAD_ENV", str(tmp_path))
    monkeypatch.delenv("TESSERA_DOWNLOAD_PYTHON", raising=False)
    assert retry_failed.main(["OUT"]) == 2
    assert "run that first" in capsys.readouterr().err
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    with pytest.raises(SystemExit):
        retry_failed.main(["OUT"])
    assert started == [[str(python), "tools/retry_failed.py", "OUT"]]
