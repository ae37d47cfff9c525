"""The short form of `python tests/hostile/run.py`: every parser meets some damaged files."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.hostile.harness import Limits, Parser, run_parser

PROGRAM = Path(__file__).with_name("run.py")
NUM_FILES = 200


def test_no_parser_crashes(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--inputs", str(NUM_FILES), "--seed", "2"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "record")],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert record["crashes"] == 0
    for parser in record["parsers"]:
        assert parser["accepted"] + parser["refused"] == parser["num_inputs"] > 0, parser
    assert sum(parser["refused"] for parser in record["parsers"]) > record["inputs"] / 2
    assert "| pictures: decoder turbo |" in (tmp_path / "record.md").read_text("utf-8")
    assert json.loads(result.stdout.splitlines()[-1])["inputs"] == record["inputs"]


_CALLS = itertools.count()


def _parse(data: bytes) -> None:
    """Does what a bad parser does, one thing for each of the first inputs."""
    number = next(_CALLS)
    if number == 1:
        raise ValueError(data)
    if number == 2:
        raise KeyError(data)
    if number == 3:
        bytearray(1 << 30)


def test_the_harness_sees_errors_and_memory() -> None:
    parser = Parser(
        name="bad", files=lambda _: [b"sound"], open=lambda _: _parse, refusals=(ValueError,)
    )
    found = run_parser(parser, 5, 0, Limits(memory_mib=256))
    # The sound file was the first call, so that input 0 is refused.
    assert (found.accepted, found.refused) == (2, 1)
    assert [crash["number"] for crash in found.crashes] == [1, 2]
    assert "KeyError" in found.crashes[0]["what"]
    assert "MemoryError" in found.crashes[1]["what"]


def test_the_harness_sees_signals_and_time() -> None:
    def die(data: bytes) -> None:
        if data != b"sound":
            os.kill(os.getpid(), signal.SIGSEGV)

    def hang(data: bytes) -> None:
        if data != b"sound":
            time.sleep(60)

    for parse, word in ((die, "signal 11"), (hang, f"signal {signal.SIGALRM:d}")):
        parser = Parser(
            name="bad", files=lambda _: [b"sound"], open=lambda _, parse=parse: parse, refusals=()
        )
        found = run_parser(parser, 2, 0, Limits(seconds=0.3))
        assert len(found.crashes) == 2
        assert all(word in crash["what"] for crash in found.crashes)
