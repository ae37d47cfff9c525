"""Processes that end with the one that started them, and finding those that did not (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

MARK = "TESSERA_DOWNLOAD_FOLDER"
"""Environment variable that every process of a download carries: the folder it works for."""
_PR_SET_PDEATHSIG = 1
_WATCH_S = 0.5


def die_with_parent(parent: int) -> None:
    """Have the system kill this process as soon as its parent ends, however it ends.

    The system takes the thread that started this process for its parent, so that must be one
    which stays to the end.

    Args:
        parent: Process that must be the parent; if it is gone already, this process ends now.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def watch_parent(parent: int) -> None:
    """End this process soon after its parent ended, whatever thread of that started it.

    Args:
        parent: Process that must be the parent; if it is gone already, this process ends now.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_all_of(folder: Path, wait_s: float = 10.0) -> int:
    """Kill every living process that an earlier download started for a folder.

    Processes are told by the mark in their environment, so that a reused number harms nobody.

    Args:
        folder: Folder of the download; its lock must be held.
        wait_s: How long they may take to be gone.

    Returns:
        How many were killed.

    Raises:
        RuntimeError: one of them is still there after `wait_s`.
    """
    killed: set[int] = set()
    give_up = time.monotonic() + wait_s
    while found := living(folder):
        for number in found:
            _kill_if_marked(number, folder)
        killed.update(found)
        if time.monotonic() > give_up:
            raise RuntimeError(f"processes {found} of an earlier download cannot be killed")
        time.sleep(0.05)
    return len(killed)


def living(folder: Path) -> list[int]:
    """Numbers of the processes that carry the mark of a folder; those that ended carry none."""
    places = (place for place in Path("/proc").glob("[0-9]*") if place.name != str(os.getpid()))
    return [int(place.name) for place in places if _is_marked(place, folder)]


def _kill_if_marked(number: int, folder: Path) -> None:
    try:
        handle = os.pidfd_open(number)
    except (ProcessLookupError, OSError):
        return
    try:
        # Looked at again through a handle that cannot come to mean another process.
        if _is_marked(Path(f"/proc/{number}"), folder):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _is_marked(place: Path, folder: Path) -> bool:
    try:
        variables = (place / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{MARK}={folder.resolve()}".encode() in variables
