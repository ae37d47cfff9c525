"""How a program ends when its storage, its reader or its user has had enough."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import list_shards
from tests.conftest import sample_members, write_tar

ROOT = Path(__file__).resolve().parents[2]


class NoCredentialsError(Exception):
    """As a store's client raises it, of no kind that Python knows."""


class LockedFileSystem(MemoryFileSystem):
    protocol = "locked"

    def glob(self, path: str, **_: object) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NoCredentialsError("Unable to locate credentials\nsee the manual")


def test_a_remote_folder_that_cannot_be_listed_is_one_line() -> None:
    fsspec.register_implementation("locked", LockedFileSystem, clobber=True)
    with pytest.raises(OSError, match=r"^locked://bucket/x cannot be listed \(NoCred.*cred") as e:
        list_shards("locked://bucket/x")
    assert "\n" not in str(e.value)


def test_the_tool_ends_with_that_line_and_status_1(tmp_path: Path) -> None:
    command = [sys.executable, "tools/index_shards.py", "http://127.0.0.1:9/x"]
    command += ["--out", str(tmp_path / "index")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be listed" in done.stderr.strip().splitlines()[-1]


def test_ctrl_c_while_the_program_starts_ends_it_quietly() -> None:
    """Moments of the start are tried, from the first imports on."""
    for wait_s in (0.15, 0.3, 0.6):
        process = subprocess.Popen(
            [sys.executable, "tools/index_shards.py", "--help"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        # Before its first line runs, the interpreter itself is interrupted: there it may say so.
        assert process.returncode in (0, 130, -signal.SIGINT)
        assert process.returncode == -signal.SIGINT or "Traceback" not in said


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", sample_members(0))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "tools/index_shards.py", tmp_path / "0.tar", "--out", tmp_path / "index"],
        cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert (tmp_path / "index" / "report.json").is_file()
