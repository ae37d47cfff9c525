"""The contract of the programs: exit statuses, one line for an error, JSON where it is wanted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tessera.tools import program

ROOT = Path(__file__).resolve().parents[3]


def raising(error: BaseException) -> Callable[[list[str]], NoReturn]:
    def work(_words: list[str]) -> NoReturn:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("--x must be 1"), 2, "error: --x must be 1"),
        (FileNotFoundError("there is no y"), 2, "error: there is no y"),
        (RuntimeError("it broke"), 1, "failed: it broke; nothing was written"),
        (MemoryError(), 1, "failed: MemoryError; nothing was written"),
        (LookupError("of its own"), 1, "failed: of its own; nothing was written"),
        (OSError(errno.ENOSPC, "No space left"), 1, "No space left; nothing was written"),
        (ValueError("a", 3), 2, "error: a, 3"),
        (ValueError("<_io.BytesIO object at 0x7f01aB>"), 2, "error: <_io.BytesIO object>"),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = program.run(
        raising(error),
        [],
        failures=(LookupError,),
        stopped="stopped; the same command resumes",
        failed="nothing was written",
    )
    out, err = capsys.readouterr()
    assert (found, out) == (status, "")
    assert err.endswith(f"{said}\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_work(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work(_words: list[str]) -> None:
        os.kill(os.getpid(), number)
        pytest.fail("the work went on")

    assert program.run(work, []) == 128 + number
    assert capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_result_may_have_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    ended = program.Ended(result={"failed": ["one"]}, status=program.FAILED)
    assert program.run(lambda _: ended, []) == 1
    assert json.loads(capsys.readouterr().out) == {"failed": ["one"]}


@pytest.mark.parametrize(
    ("words", "is_terminal", "has_json"),
    [([], False, True), ([], True, False), (["--json", "a"], True, True)],
)
def test_json_is_for_programs(
    words: list[str],
    is_terminal: bool,
    has_json: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    seen: list[str] = []

    def work(given: list[str]) -> dict[str, int]:
        seen.extend(given)
        print("a summary")
        return {"count": 1}

    assert program.run(work, words) == 0
    assert seen == [word for word in words if word != "--json"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["a summary", '{"count": 1}'][: 1 + has_json]


def test_words_after_two_dashes_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(lambda words: {"words": words}, ["a", "--", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"words": ["a", "--", "--json"]}


def test_a_closed_pipe_ends_the_output_and_not_the_work(tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = (
        "import sys\nfrom pathlib import Path\nfrom tools import program\n"
        "def work(words):\n"
        "    for number in range(100_000):\n"
        "        print('a line', number)\n"
        "        print('a line', number, file=sys.stderr)\n"
        f"    Path({str(done)!r}).touch()\n"
        "    return {}\n"
        "sys.exit(program.run(work, []))\n"
    )
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, stdout=write, stderr=write, check=False,
            timeout=120,
        )  # fmt: skip
    finally:
        os.close(write)
    assert ended.returncode == 0
    assert done.is_file()


def test_ctrl_c_during_the_imports_is_one_line(tmp_path: Path) -> None:
    stand_in = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "tyro.py").write_text(stand_in, "utf-8")
    ended = subprocess.run(
        [sys.executable, "tools/evaluate.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "stopped\n")
