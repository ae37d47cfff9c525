"""Files that are there whole or not at all, also after a crash or a power cut."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tessera.pipeline.file_lock import HELD_SUFFIX, FileLock, HeldError, has_flock

_PARTIAL = ".partial-"
_LOCK = "lock"
_LOCKS = {_LOCK, _LOCK + HELD_SUFFIX}
_STALE_S = 3600.0
"""Without locks, a file that is being written tells itself from one left behind by its age."""


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
    file = _open_locked(partial)  # shows that somebody is writing it
    if file is None:
        partial = partial.with_name(f"{partial.name}-{uuid.uuid4().hex[:8]}")
        file = partial.open("xb")
    with file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
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
        with suppress(FileNotFoundError, HeldError), path.open("rb") as file:
            is_left = has_flock(file) or time.time() - path.stat().st_mtime > _STALE_S
            if is_left and _is_at(file, path):
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
    with locked_folder(path) as work:
        clear(work)
        content = work / "content"
        try:
            content.mkdir()
            yield content
        finally:
            clear(work)


@contextmanager
def locked_folder(path: Path) -> Iterator[Path]:
    """As `work_folder`, but what lies in it outlives the block, and a kill, until it is cleared."""
    work = path.with_name(f".{path.name}.partial")
    try:
        lock = _lock_in(work)
    except HeldError as error:
        msg = f"another process is making {path}: wait for it or stop it{error.remedy}"
        raise RuntimeError(msg) from None
    with lock:
        try:
            yield work
        finally:
            _remove_if_clear(work, lock)


def clear(folder: Path) -> None:
    """Remove all that lies in a `locked_folder`, so that it goes behind its block."""
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in _LOCKS:
            path.unlink(missing_ok=True)


def _remove_if_clear(folder: Path, lock: FileLock) -> None:
    """The lock goes last: from then on, the folder may be another process's."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= _LOCKS:
            (folder / _LOCK).unlink()
            lock.close()
            folder.rmdir()


def _lock_in(folder: Path) -> FileLock:
    """Make a folder, and lock it; whoever had it before may remove it at any moment until then."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # or it has just gone
            if folder.is_file() or folder.is_symlink():
                raise
        with suppress(FileNotFoundError):
            path = folder / _LOCK
            lock = FileLock(path.open("ab"))
            with suppress(FileNotFoundError):
                if _is_at(lock.file, path):
                    return lock
            lock.close()


def _open_locked(path: Path) -> IO[bytes] | None:
    """Open a file, lock and empty it; anew where it was removed or replaced before it was locked.

    Nothing is emptied that another process has locked. None where the file system has no locks.
    """
    while True:
        file = path.open("ab")
        try:
            if not has_flock(file, wait=True):
                file.close()
                path.unlink(missing_ok=True)
                return None
            with suppress(FileNotFoundError):
                if _is_at(file, path):
                    file.truncate(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file still has a name; without a file of that name, FileNotFoundError."""
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
