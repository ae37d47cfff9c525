"""One process at a time, also where the file system has no locks.

`flock` is used where it works. Lustre mounted without it, NFS without its lock daemon and some FUSE
file systems answer ENOSYS, ENOLCK or EOPNOTSUPP. The lock is then a second file, `NAME.held`, that
is linked into place and names the process that holds it.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import logging
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

logger = logging.getLogger(__name__)

HELD_SUFFIX = ".held"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_NO_LINKS = _NO_LOCKS | {errno.EPERM, errno.EMLINK}
_POLL_S = 0.1
_PATIENCE_S = 10.0
"""A holder's name that cannot be read may be just being written; after so long it is not."""
_warned: set[Path] = set()


class HeldError(BlockingIOError):
    """Another process holds the lock; `remedy` completes a message where that may be wrong."""

    def __init__(self, path: Path, remedy: str = "") -> None:
        super().__init__(errno.EAGAIN, "another process has locked it", str(path))
        self.remedy = remedy


class FileLock:
    """Keeps other processes out from its making until it is closed; a context manager.

    The lock goes with the process. Where a lock file stands for it, a killed process leaves that
    file, and the next process of the same machine sees that its holder is gone.
    """

    def __init__(self, file: IO[Any], *, wait: bool = False) -> None:
        """Lock an open file, which is closed with the lock, or if it cannot be had.

        Args:
            file: opened by its path for writing.
            wait: wait for other processes and threads instead of raising `HeldError`.

        Raises:
            HeldError: another process, or another lock of this one, holds it.
            OSError: the file cannot be locked; the error names it.
        """
        self.file = file
        self._held: Path | None = None
        try:
            if not has_flock(file, wait=wait):
                self._held = _hold(Path(file.name).absolute(), wait=wait)
        except BaseException:
            file.close()
            raise
        if self._held is not None:
            atexit.register(self._release)

    def close(self) -> None:
        """Let other processes in."""
        self._release()
        self.file.close()

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    def _release(self) -> None:
        if self._held is not None and _holder(self._held).get("pid") == os.getpid():
            self._held.unlink(missing_ok=True)
        if self._held is not None:
            atexit.unregister(self._release)
        self._held = None


def has_flock(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file by `flock`; whether the file system can do that.

    Raises:
        HeldError: another process holds it, and `wait` is off.
        OSError: the file cannot be locked; the error names it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HeldError(Path(file.name)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise OSError(error.errno, f"cannot be locked ({error.strerror})", file.name) from error
    return True


def _hold(path: Path, *, wait: bool) -> Path:
    """Make the lock file of a path; returns its name."""
    held = path.with_name(path.name + HELD_SUFFIX)
    if path.parent not in _warned:
        _warned.add(path.parent)
        logger.warning(
            "the file system of %s has no file locks: %s keeps other processes out instead",
            path.parent,
            held.name,
        )
    me = json.dumps(_identity(os.getpid()))
    since = time.monotonic()
    while not _link(held, me):
        holder = _holder(held)
        if _is_gone(holder) or (not holder and time.monotonic() - since > _PATIENCE_S):
            _remove_stale(held, holder)
        elif holder and not wait:
            raise HeldError(path, _remedy(held, holder))
        else:
            time.sleep(_POLL_S)
    return held


def _link(held: Path, content: str) -> bool:
    """Give a complete file its name in one step, unless there is one of that name."""
    own = held.with_name(f".{held.name}.{uuid.uuid4().hex}")
    own.write_text(content, encoding="utf-8")
    try:
        with suppress(FileExistsError):
            os.link(own, held)
        return own.stat().st_nlink > 1  # over NFS, an answer that was lost looks like a failure
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with held.open("x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True
    finally:
        own.unlink(missing_ok=True)


def _holder(held: Path) -> dict[str, Any]:
    """What a lock file says of its process; empty if it is gone or not complete."""
    with suppress(OSError, ValueError):
        found = json.loads(held.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the process ended; of another machine that cannot be known."""
    if not holder:
        return False
    there = _identity(holder.get("pid", -1))
    return holder.get("machine") == there["machine"] and holder != there


def _identity(pid: int) -> dict[str, Any]:
    """What tells one process from all others, of this boot and of other machines too."""
    machine, started = [socket.gethostname()], ""
    with suppress(OSError):
        machine.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip())
        machine.append(str(Path("/proc/self/ns/pid").readlink()))
    try:
        # The 22nd field: when it started. The second one may hold spaces, in brackets.
        started = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    except OSError:
        if not _runs(pid):
            pid = -1
    return {"pid": pid, "machine": machine, "started": started}


def _runs(pid: int) -> bool:
    """Whether there is such a process, where /proc does not tell."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return pid > 0


def _remove_stale(held: Path, holder: dict[str, Any]) -> None:
    """Remove a lock file, unless another process was faster and has made its own."""
    aside = held.with_name(f".{held.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        held.rename(aside)
        if _holder(aside) != holder:
            with suppress(OSError):
                os.link(aside, held)
        aside.unlink()


def _remedy(held: Path, holder: dict[str, Any]) -> str:
    host = next(iter(holder.get("machine", ())), "another machine")
    return (
        f". This file system has no file locks; {held} says that process {holder.get('pid')} of "
        f"{host} holds it: remove that file if the process is gone"
    )
