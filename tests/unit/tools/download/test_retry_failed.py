"""The second pass: which rows it takes, that it is done once, and how it resumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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
from tessera.tools.download.table.summary import load_summary
from tests import download_shards
from tests.download_shards import write_shard

FIRST = {
    2: ("failed_to_download", "forbidden: HTTP 403"),
    3: ("failed_to_download", "not_found: HTTP 404"),
    5: ("failed_to_download", "timeout: no answer"),
    7: ("failed_to_download", "server_error: HTTP 503"),
}
SECOND = {7: ("failed_to_download", "connection: reset"), 2: ("failed_to_download", "tls: no")}


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[str, str]]:
    """Outcome by the last digit of the row id; a test changes it between passes."""
    current = dict(FIRST)
    monkeypatch.setattr(download_shards, "FAILS", current)
    return current


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
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
    ids = list(range(96))
    source = pa.table(
        {
            "url": [f"https://h{n % 5}.example/{n}.jpg" for n in ids],
            "text": [f'caption {n}\t"x' if n != 4 else "" for n in ids],
            "score": [n / 2 for n in ids],
        }
    )
    pq.write_table(source, tmp_path / "source.parquet")
    folder = tmp_path / "out"
    source = str(tmp_path / "source.parquet")
    summary = prepare_table(source, folder / "table", rows_per_part=60)
    job = Job(
        table=str(folder / "table"),
        shards=str(folder / "shards"),
        samples_per_shard=20,
        processes=1,
        threads=16,
        timeout_s=5,
        deadline_s=20,
        extra_columns=tuple(summary.extra_columns),
    )
    (folder / "job.json").write_text(job.to_json())
    (folder / "shards").mkdir()
    for number in ShardBook(folder).plan:
        write_shard(folder, number)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    """Exit status and JSON line of the tool."""
    status = retry_failed.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().out.splitlines()
    return status, json.loads(lines[-1]) if lines and status == 0 else {}


def rows_of(table: Path) -> dict[int, dict[str, object]]:
    rows = [row for path in sorted(table.glob("part-*")) for row in pq.read_table(path).to_pylist()]
    return {row["row_id"]: row for row in rows}


def ending(*digits: int) -> set[int]:
    return {n for n in range(96) if n % 10 in digits}


def test_rows_that_may_succeed_are_tried_again(
    out: Path, passes: list[Job], outcomes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes.clear()
    outcomes.update(SECOND)
    status, result = run(capsys, out)
    assert status == 0
    first, again = rows_of(out / "table"), rows_of(out / "retry-01/table")
    assert set(again) == ending(5, 7)
    assert all(first[number] == row for number, row in again.items())  # further columns too
    assert result["num_rows"] == len(again)
    assert result["num_successes"] == len(ending(5))
    assert result["failures"] == {"connection": len(ending(7))}
    assert result["num_still_retryable"] == len(ending(7))
    summary = load_summary(out / "retry-01/table")
    assert summary is not None
    assert summary.pass_number == 1


def test_second_pass_is_slower_and_more_patient(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, out)
    (job,) = passes
    first = Job.load(out)
    assert (job.threads, job.timeout_s, job.deadline_s) == (4, 10, 60)
    assert (job.processes, job.retries, job.user_agent) == (1, first.retries, first.user_agent)
    assert job.extra_columns == ("score",)
    assert job.shards == str(out / "retry-01/shards")


def test_options_change_the_job(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--threads", 9, "--timeout", 1, "--deadline", 2, "--retries", 0, "--processes", 3]
    assert run(capsys, out, *options, "--user-agent", "me")[0] == 0
    (job,) = passes
    assert (job.threads, job.timeout_s, job.deadline_s) == (9, 1, 2)
    assert (job.processes, job.retries, job.user_agent) == (3, 0, "me")


def test_options_without_sense_are_refused(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    assert retry_failed.main([str(out), "--threads", "0"]) == 2
    assert "--threads must be at least 1" in capsys.readouterr().err
    assert not (out / "retry-01").exists()


def test_same_command_again_does_nothing(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, out)
    status, result = run(capsys, out)
    assert status == 0
    assert result == {
        "nothing_to_retry": True,
        "num_passes": 1,
        "num_still_retryable": len(ending(5, 7)),
    }
    assert len(passes) == 1
    assert not (out / "retry-02").exists()


def test_again_takes_what_still_fails(
    out: Path, passes: list[Job], outcomes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes.clear()
    outcomes.update(SECOND)
    run(capsys, out)
    status, result = run(capsys, out, "--again")
    assert status == 0
    assert set(rows_of(out / "retry-02/table")) == ending(7)
    outcomes.clear()
    run(capsys, out, "--again")
    assert set(rows_of(out / "retry-03/table")) == ending(7)
    status, result = run(capsys, out, "--again")  # all are there now
    assert (status, result["nothing_to_retry"], result["num_still_retryable"]) == (0, True, 0)
    assert not (out / "retry-04").exists()
    first = ending(*set(range(10)) - set(FIRST))
    assert first - {4} | ending(5) | ending(7) == {*keys_in(out), *keys_in(out / "retry-01"),
                                                  *keys_in(out / "retry-03")}  # fmt: skip


def keys_in(folder: Path) -> list[int]:
    book = ShardBook(folder)
    book.refresh()
    rows = book.metadata().to_table().to_pylist()
    return [row["row_id"] for row in rows if row["status"] == "success"]


def test_further_causes_on_request(
    out: Path, passes: list[Job], outcomes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes.clear()
    assert run(capsys, out, "--also", "forbidden", "not_found")[0] == 0
    assert set(rows_of(out / "retry-01/table")) == ending(2, 3, 5, 7)
    with pytest.raises(SystemExit) as stop:
        retry_failed.main([str(out), "--also", "sunshine"])
    assert stop.value.code == 2


def test_last_outcome_decides(
    out: Path, passes: list[Job], outcomes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes.clear()
    outcomes.update({2: SECOND[2], 5: ("failed_to_download", "not_found: HTTP 404")})
    run(capsys, out, "--also", "forbidden")
    status, result = run(capsys, out)
    assert (status, result["num_still_retryable"]) == (0, 0)
    run(capsys, out, "--again", "--also", "forbidden", "tls")
    assert set(rows_of(out / "retry-02/table")) == ending(2)


@pytest.mark.parametrize("left", ["a table", "a job", "half of the shards"])
def test_unfinished_pass_is_gone_on_with(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str], left: str
) -> None:
    run(capsys, out)
    table = rows_of(out / "retry-01/table")
    for path in list((out / "retry-01/shards").iterdir()):
        if left != "half of the shards" or path.name.startswith("00000"):
            path.unlink()
    if left == "a table":
        (out / "retry-01/job.json").unlink()
    status, result = run(capsys, out)
    assert status == 0
    assert result["pass"] == 1
    assert result["num_rows"] == len(table)
    assert rows_of(out / "retry-01/table") == table
    assert len(passes) == 2


def test_further_causes_come_too_late_for_an_unfinished_pass_and_are_said(
    out: Path, passes: list[Job], outcomes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, out, "--also", "not_found")
    (out / "retry-01/shards/00000_stats.json").unlink()
    table = rows_of(out / "retry-01/table")
    also = ["--also", "forbidden", "not_found"]
    assert retry_failed.main([str(out), *also]) == 0
    said = capsys.readouterr().out
    assert f"begun without {len(ending(2))} rows" in said
    assert "--again --also forbidden not_found" in said
    assert rows_of(out / "retry-01/table") == table
    left = json.loads(said.splitlines()[-1])["num_still_retryable"]
    assert left == len(ending(2, 3, 5, 7))
    outcomes.clear()
    assert run(capsys, out, "--again", *also)[0] == 0
    assert set(rows_of(out / "retry-02/table")) == ending(2, 3, 5, 7)

    (out / "retry-02/shards/00000_stats.json").unlink()
    assert retry_failed.main([str(out), *also]) == 0  # nothing is left out of this one
    assert "begun without" not in capsys.readouterr().out


def test_an_empty_table_is_no_pass(
    out: Path, passes: list[Job], outcomes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "retry-01/table").mkdir(parents=True)
    status, result = run(capsys, out)
    assert (status, result["pass"], result["num_rows"]) == (0, 1, len(ending(5, 7)))
    (out / "retry-02/table").mkdir(parents=True)
    outcomes.clear()
    assert run(capsys, out, "--again")[0] == 0
    (out / "retry-03/table").mkdir(parents=True)
    assert run(capsys, out)[1]["nothing_to_retry"] is True


def test_pass_killed_while_its_table_was_written(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "retry-01/.table.partial").mkdir(parents=True)
    status, result = run(capsys, out)
    assert (status, result["pass"]) == (0, 1)
    assert not (out / "retry-01/.table.partial").exists()


def test_nothing_failed(
    out: Path, passes: list[Job], outcomes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes.clear()
    for number in ShardBook(out).plan:
        write_shard(out, number)
    status, result = run(capsys, out)
    assert (status, result["nothing_to_retry"]) == (0, True)
    assert not passes
    assert not (out / "retry-01").exists()


def test_unfinished_first_pass_is_refused(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "shards/00002_stats.json").unlink()
    assert retry_failed.main([str(out)]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert not passes


def test_running_download_is_refused(out: Path) -> None:
    with exclusive(out):
        command = [sys.executable, "tools/retry_failed.py", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"at work in {out} (process {os.getpid()} on" in done.stderr


def test_wrong_folders_and_tables_are_refused(
    out: Path, passes: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    assert retry_failed.main([str(out / "none")]) == 2
    assert "no download was begun" in capsys.readouterr().err
    run(capsys, out)
    (out / "retry-01").rename(out / "retry-02")
    assert retry_failed.main([str(out)]) == 2
    assert "one is missing" in capsys.readouterr().err
    shutil.rmtree(out / "retry-02")
    (out / "table/table.json").unlink()
    assert retry_failed.main([str(out)]) == 2
    assert "table.json" in capsys.readouterr().err


def test_goes_on_in_the_environment_of_the_download(
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
