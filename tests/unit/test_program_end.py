"""How a program ends when its storage, its reader or its user has had enough."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tessera.pipeline.storage import list_shards
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


@pytest.mark.parametrize(
    ("program", "moments"),
    [
        ("train.py", ("logging", "numpy", "timm")),
        ("tools/index_shards.py", ("tyro",)),
        ("tools/search.py", ("numpy",)),
    ],
)
def test_ctrl_c_while_the_program_starts_ends_it_quietly(
    program: str, moments: tuple[str, ...]
) -> None:
    """A moment of the start is the import of a module, as the interpreter tells it."""
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", program, "demo", "nowhere"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if line.split("|")[-1].strip().split(".")[0] == moment:
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.readlines()
        assert process.wait() == 130, (moment, said[-3:])
        assert "Traceback" not in "".join(said)
        assert "stopped" in said[-1]


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (("train.py", "--list"), ("torch", "timm", "open_clip")),
        (("train.py", "--help"), ("timm", "open_clip", "torch._dynamo")),
    ],
)
def test_what_needs_little_waits_for_little(words: tuple[str, ...], absent: tuple[str]) -> None:
    """Counted in modules, not in seconds, which depend on the machine."""
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "tessera.recipes.clip" in imported
    assert not imported & set(absent)


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
