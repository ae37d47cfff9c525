"""Files that are there whole or not at all, also after a crash or a power cut."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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
        with _open_locked(partial, fcntl.LOCK_EX) as file:  # shows that somebody is writing it
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
    try:
        lock = _lock_in(work)
    except BlockingIOError:
        raise RuntimeError(f"another process is making {path}: wait for it") from None
    with lock:
        content = work / "content"
        shutil.rmtree(content, ignore_errors=True)
        try:
            content.mkdir()
            yield content
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _lock_in(folder: Path) -> BinaryIO:
    """Make a folder, and lock it; whoever had it before may remove it at any moment until then."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return _open_locked(folder / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_locked(path: Path, how: int) -> BinaryIO:
    """Open a file for writing and lock it, anew where it was removed between the two."""
    while True:
        file = path.open("wb")
        try:
            fcntl.flock(file, how)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()
