"""One download at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

_NAME = "download.lock"
_held: set[Path] = set()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep every other process from downloading into a folder; the system lets go when we end.

    Within one process it may be entered again, by a function that needs it for itself.

    Args:
        folder: Made when missing; the lock is the file `download.lock` in it.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if folder in _held:
        yield
        return
    with (folder / _NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(
                f"a download is at work in {folder} ({holder}): wait for it or stop it first"
            ) from None
        file.truncate(0)
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        _held.add(folder)
        try:
            yield
        finally:
            _held.discard(folder)
            # The name stays: a file removed here could be locked by someone who just opened it.
            file.truncate(0)
