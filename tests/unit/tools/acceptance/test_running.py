"""A step ends in its time and says why it did not; nothing that it started stays behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tools.acceptance.running import Outcome, run_step
from tools.acceptance.steps import Step


def run(tmp_path: Path, script: str, minutes: float = 1.0, needs: str = "") -> Outcome:
    step = Step(
        name="step",
        part="figures",
        question="?",
        command=(sys.executable, "-c", script),
        minutes=minutes,
        needs=needs,
    )
    return run_step(step, tmp_path / "log", os.environ, most_seconds=60)


def test_the_last_json_line_is_the_record(tmp_path: Path) -> None:
    outcome = run(
        tmp_path, "print('{\"a\": 1}'); print('{\"a\": 2}'); print('{no json'); print('x')"
    )
    assert outcome.status == "done"
    assert outcome.record == {"a": 2}


def test_a_failure_keeps_its_last_words_and_its_record(tmp_path: Path) -> None:
    outcome = run(tmp_path, "import sys; print('{\"a\": 1}'); sys.exit('it broke')")
    assert outcome.status == "failed"
    assert outcome.reason == "exit status 1: it broke"
    assert outcome.record == {"a": 1}


def test_what_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    outcome = run(
        tmp_path,
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid)); time.sleep(100)",
        minutes=1.5 / 60,
    )
    assert outcome.status == "out of time"
    assert 1.4 < outcome.seconds < 30
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child.read_text()}").exists():
        state = Path(f"/proc/{child.read_text()}/stat").read_text().split()[2]
        if state == "Z":  # ended; whoever adopted it has not asked for its status yet
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_run_is_left_out_and_says_why(tmp_path: Path) -> None:
    outcome = run(tmp_path, "print(1)", needs="no-such-program")
    assert (outcome.status, outcome.reason) == ("left out", "no-such-program is not installed")
    step = Step(name="s", part="figures", question="?", command=("true",), minutes=1)
    assert run_step(step, tmp_path / "log", os.environ, most_seconds=0).status == "left out"
