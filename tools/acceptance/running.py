"""Runs steps one after the other, each within its time, and keeps what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tools.acceptance.steps import Step

Status = Literal["done", "failed", "out of time", "left out"]
_GRACE_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a step."""

    name: str
    """Of the step."""
    question: str
    """What it answers."""
    command: str
    """Its words."""
    status: Status
    """How it ended."""
    seconds: float
    """How long it took."""
    reason: str
    """The last line that it printed if it failed, or why it was left out."""
    record: dict[str, Any]
    """The JSON object that it printed last; empty if there is none."""

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def run_step(step: Step, log: Path, environment: Mapping[str, str], most_seconds: float) -> Outcome:
    """Run a step to its end, or to the end of its time.

    Args:
        step: what to run.
        log: file for everything that it prints.
        environment: of the process.
        most_seconds: time that the visit has left.

    Returns:
        What came of it; a failure is an outcome like any other.
    """
    reason = step.missing or ("no time is left" if most_seconds < 1 else "")
    if reason:
        return _outcome(step, "left out", 0.0, reason, {})
    limit = min(step.minutes * 60, most_seconds)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as sink:
        try:
            process = subprocess.Popen(
                step.command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            return _outcome(step, "failed", 0.0, str(error), {})
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return _outcome(
                step,
                "out of time",
                time.monotonic() - started,
                f"{limit:.0f} s were not enough",
                {},
            )
        except BaseException:
            _end(process)
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    seconds = time.monotonic() - started
    record = _last_record(lines)
    if code:
        said = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        return _outcome(step, "failed", seconds, f"exit status {code}: {said[-300:]}", record)
    return _outcome(step, "done", seconds, "", record)


def _outcome(
    step: Step, status: Status, seconds: float, reason: str, record: dict[str, Any]
) -> Outcome:
    return Outcome(
        name=step.name,
        question=step.question,
        command=step.shown,
        status=status,
        seconds=seconds,
        reason=reason,
        record=record,
    )


def _last_record(lines: list[str]) -> dict[str, Any]:
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything that it started."""
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
