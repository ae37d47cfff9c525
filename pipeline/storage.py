"""Shards wherever they lie: local files by path, everything else by URL through fsspec.

A location is a string: the absolute path of a local file, or a URL such as `s3://bucket/00000.tar`
or `https://host/00000.tar` whose protocol fsspec knows.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, BinaryIO, TypeVar, cast

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_EDGE_BYTES = 64 * 1024
_BUFFER_BYTES = 1024**2
_READ_AHEAD_BYTES = 8 * 1024**2
_NUM_TRIES = 5
_FIRST_WAIT_S = 0.2
_UNPACK = {
    ".tar.gz": "gunzip --keep {folder}/*.tar.gz",
    ".tgz": "gunzip --keep --suffix .tgz {folder}/*.tgz",
    ".tar.zst": "zstd -d {folder}/*.tar.zst",
    ".tar.xz": "unxz --keep {folder}/*.tar.xz",
    ".tar.bz2": "bunzip2 --keep {folder}/*.tar.bz2",
}
"""Commands that unpack what is not read."""
_SILENCE_S = 30.0
"""So long a web server may say nothing, in seconds, before it is asked again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileState:
    """What tells one state of a file from another without reading it."""

    size_bytes: int
    """Length of the file."""
    mtime_ns: int
    """Time of the last change of a local file, in nanoseconds since the epoch; 0 if remote."""
    version: str
    """What a remote store says instead, such as an ETag; empty if local or if it says nothing."""


def normalised(place: str | Path) -> str:
    """The location of a file or folder: local ones absolute and resolved, URLs as they are."""
    text = str(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return text if is_remote(text) else str(Path(text).resolve())


def is_remote(location: str) -> bool:
    """Whether a location is a URL."""
    return "://" in location


def list_shards(place: str | Path) -> list[str]:
    """The tar files that a place names: itself, or the *.tar of a folder, sorted.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: a folder without *.tar, or a URL that cannot be used.
    """
    location = normalised(place)
    if is_remote(location):
        found = _list_remote(location)
    elif Path(location).is_dir():
        found = sorted(str(path) for path in Path(location).glob("*.tar"))
    elif Path(location).is_file():
        return [location]
    else:
        raise FileNotFoundError(f"there is no {place}")
    if not found:
        raise ValueError(f"the folder {place} holds no *.tar{_instead(location)}")
    return found


def file_state(location: str, give_up: Event | None = None) -> FileState:
    """Size and time or version of a file.

    Args:
        location: of the file.
        give_up: as for `read_range`.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be asked for.
    """
    if not is_remote(location):
        if not Path(location).is_file():
            raise FileNotFoundError(f"there is no such shard: {location}")
        status = Path(location).stat()
        return FileState(size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, version="")
    files, path = _file_system(location)
    try:
        found = _patiently(lambda: files.info(path), give_up)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no such shard: {location}") from None
    if found.get("size") is None:
        raise OSError(f"{location}: the server does not tell its size")
    stamp = next((found[name] for name in ("ETag", "etag", "LastModified") if name in found), "")
    return FileState(size_bytes=int(found["size"]), mtime_ns=0, version=str(stamp))


def open_binary(location: str) -> BinaryIO:
    """Open a file for reading mostly forwards, with buffering that suits where it lies."""
    if not is_remote(location):
        return cast("BinaryIO", Path(location).open("rb", buffering=_BUFFER_BYTES))
    files, path = _file_system(location)
    return files.open(path, "rb", block_size=_READ_AHEAD_BYTES, cache_type="readahead")


def read_range(location: str, offset: int, num_bytes: int, give_up: Event | None = None) -> bytes:
    """Read part of a remote file in one request; the result is shorter where the file ends.

    Args:
        location: of the file.
        offset: of the first byte.
        num_bytes: wanted.
        give_up: once it is set, a request that failed is not made again.

    Raises:
        OSError: it could not be read in several tries.
    """
    files, path = _file_system(location)
    ask = lambda: files.cat_file(path, start=offset, end=offset + num_bytes)  # noqa: E731
    return _patiently(ask, give_up)


def read_text(location: str) -> str:
    """Read a small UTF-8 file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_remote(location):
        return Path(location).read_text(encoding="utf-8")
    files, path = _file_system(location)
    return _patiently(lambda: files.cat_file(path)).decode("utf-8")


def folder_of(location: str) -> str:
    """The folder a file lies in."""
    return location.rpartition("/")[0] if is_remote(location) else str(Path(location).parent)


def stem_of(location: str) -> str:
    """The name of a file without its suffix."""
    return PurePosixPath(location).stem


def head_tail_crc32(location: str, give_up: Event | None = None) -> int:
    """CRC-32 over the first and the last 64 KiB of a file, which overlap in a short one.

    Args:
        location: of the file.
        give_up: as for `read_range`.
    """
    if is_remote(location):
        last = max(0, file_state(location, give_up).size_bytes - _EDGE_BYTES)
        crc = zlib.crc32(read_range(location, 0, _EDGE_BYTES, give_up))
        return zlib.crc32(read_range(location, last, _EDGE_BYTES, give_up), crc)
    with open_binary(location) as file:
        crc = zlib.crc32(file.read(_EDGE_BYTES))
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - _EDGE_BYTES))
        return zlib.crc32(file.read(_EDGE_BYTES), crc)


def file_crc32(path: Path) -> int:
    """CRC-32 over a whole local file."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ_AHEAD_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _patiently(ask: Callable[[], Answer], give_up: Event | None = None) -> Answer:
    """Ask remote storage, several times if it fails, with longer and longer waits.

    Args:
        ask: what is tried.
        give_up: ends the waits and the tries.

    Raises:
        FileNotFoundError: what is asked for is not there.
        OSError: it failed every time.
    """
    give_up = give_up or Event()
    wait_s = _FIRST_WAIT_S
    for _ in range(_NUM_TRIES - 1):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except Exception as error:
            if give_up.wait(wait_s):
                raise _as_os_error(error) from error
            logger.warning("asking remote storage again: %s", error or type(error).__name__)
            wait_s *= 2
    try:
        return ask()
    except Exception as error:
        raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> OSError:
    """Clients of remote storage raise errors of their own, and time-outs without a word."""
    if isinstance(error, OSError) and str(error):
        return error
    return OSError(f"{type(error).__name__}: {error}")


def _list_remote(location: str) -> list[str]:
    if location.endswith(".tar"):
        file_state(location)
        return [location]
    files, path = _file_system(location)
    protocol = location.partition("://")[0]
    try:
        names = files.glob(f"{path.rstrip('/')}/*.tar")
    except Exception as error:
        # Clients of remote storage raise errors of their own, some of many lines.
        why = " ".join(f"{type(error).__name__}: {error}".split())
        help_ = "is the network up, and does the store's client have its credentials?"
        raise OSError(f"{location} cannot be listed ({why}): {help_}") from error
    found = (files.unstrip_protocol(name) for name in names)
    return sorted(name if "://" in name else f"{protocol}://{name}" for name in found)


def _instead(location: str) -> str:
    """What a local folder without *.tar holds in their place, and what to do about it."""
    if is_remote(location):
        return ""
    folder, found = Path(location), Counter[str]()
    for path in folder.iterdir():
        if path.is_file():
            found[next((end for end in _UNPACK if path.name.lower().endswith(end)), "")] += 1
    for end, command in _UNPACK.items():
        if found[end]:
            return (
                f", but {found[end]} *{end}: unpack them first, as samples are read from the "
                f"middle of a tar, with `{command.format(folder=folder)}`"
            )
    below = next((path.parent for path in folder.glob("*/*.tar")), None)
    return f"; {below} does: name that folder" if below else ""


def _file_system(location: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it; fsspec keeps one connection for each."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(location, **_options(location))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{location} cannot be read: {error}") from error
    except Exception as error:
        raise OSError(f"{location} cannot be read: {_as_os_error(error)}") from error


def _options(location: str) -> dict[str, Any]:
    """What a web server's client is told; fsspec's own configuration comes first.

    aiohttp gives a request five minutes in all, which is long for a server that has fallen silent
    and short for much data over a slow line. Other clients (s3fs, gcsfs) have limits of their own.
    """
    protocol = location.partition("://")[0]
    if protocol not in ("http", "https"):
        return {}
    import fsspec.config

    if "client_kwargs" in fsspec.config.conf.get(protocol, {}):
        return {}
    try:
        import aiohttp
    except ImportError:
        return {}  # fsspec says what is missing
    limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    return {"client_kwargs": {"timeout": limits}}
