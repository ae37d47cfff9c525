"""Files that are there whole or not at all, also after a crash or a power cut."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = ".partial-"


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, and give it its own once it is on the disk.

    Args:
        path: the file; an older one is replaced at once.
        text: its content, stored as UTF-8.

    Raises:
        OSError: it could not be written; an older file is as it was.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """As `write_text`, of any content."""
    partial = path.with_name(f".{path.name}{_PARTIAL}{os.getpid()}")
    try:
        with partial.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # shows that somebody is writing it
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of files that they were writing into a folder.

    Args:
        folder: it need not be there.
        name: of the files, as a pattern.
    """
    for path in folder.glob(f".{name}{_PARTIAL}*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """An empty folder to make `path` in, hidden beside it, for one process at a time.

    What a killed process left there goes first, and nothing stays behind the block but what was
    moved away.

    Raises:
        RuntimeError: another process is making the same thing.
        OSError: the folder cannot be made.
    """
    work = path.with_name(f".{path.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is making {path}: wait for it") from None
        content = work / "content"
        shutil.rmtree(content, ignore_errors=True)
        try:
            content.mkdir()
            yield content
        finally:
            shutil.rmtree(work, ignore_errors=True)
