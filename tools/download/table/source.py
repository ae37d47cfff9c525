"""Where the table comes from: local files as they are, or a copy of a URL, fetched once.

A copy lies beside the table's folder, in `source/`, and may be deleted once the table is made. It
is fetched with HTTP ranges, so that a broken download goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from pipeline.durable import write_text
from tools.download.table.format import SUFFIXES

Tell = Callable[[str], None]
"""Takes one line for the person who waits."""

_CHUNK = 1 << 20
_TELL_EVERY_S = 10.0
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A local file that rows are read from, and what it held."""

    path: str
    """Where it lies."""
    num_bytes: int
    """Its size."""
    mtime_ns: int
    """When it was last changed, in ns since 1970."""
    sha256: str
    """SHA-256 (hex) of its content."""

    def untouched(self) -> bool:
        """Size and time are those recorded, so the content is taken as the same."""
        try:
            state = Path(self.path).stat()
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (self.num_bytes, self.mtime_ns)


def is_remote(source: str) -> bool:
    """Is it a URL that has to be copied."""
    return "://" in source and not source.startswith("file://")


def local_files(source: str, copies: Path, tell: Tell) -> list[Path]:
    """Local files of a source, in the order in which they are read.

    Args:
        source: a file, a folder (its tables in the order of their names), or a URL of either;
            folders can be listed with fsspec URLs only, not with http.
        copies: folder for what is fetched.
        tell: told about the progress of a download.

    Raises:
        FileNotFoundError: it does not exist or holds no table.
        ValueError: the kind of URL needs a package that is not installed.
        OSError: it could not be fetched.
    """
    if source.startswith(("http://", "https://")):
        return [_fetch_http(source, copies, tell)]
    if is_remote(source):
        return _fetch_fsspec(source, copies, tell)
    path = Path(unquote(urlsplit(source).path) if source.startswith("file://") else source)
    path = path.expanduser().resolve()
    if path.is_dir():
        return [path / name for name in _tables(source, [p.name for p in path.iterdir()])]
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    return [path]


def describe_file(path: Path, tell: Tell) -> SourceFile:
    """Read a file through and record what it held."""
    state = path.stat()
    digest = hashlib.sha256()
    report = _Progress(f"checksum of {path.name}", state.st_size, tell)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            report.add(len(chunk))
    return SourceFile(
        path=str(path),
        num_bytes=state.st_size,
        mtime_ns=state.st_mtime_ns,
        sha256=digest.hexdigest(),
    )


def combined_sha256(files: Sequence[SourceFile]) -> str:
    """SHA-256 of a source: of its file, or over those of all its files, in order."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()


def unpacked_bytes(path: Path) -> int:
    """About how many bytes of rows a file holds."""
    with path.open("rb") as file:
        magic = file.read(4)
    size = path.stat().st_size
    if magic == b"PAR1":
        meta = pq.read_metadata(path)
        return sum(meta.row_group(n).total_byte_size for n in range(meta.num_row_groups)) * 2
    return size * 4 if magic.startswith(b"\x1f\x8b") else size


class _Progress:
    """Says every few seconds how far a transfer is."""

    def __init__(self, what: str, total: int | None, tell: Tell, done: int = 0) -> None:
        self.what, self.total, self.tell, self.done = what, total, tell, done
        self.first = done
        self.started = self.last = time.monotonic()

    def add(self, size: int) -> None:
        """Count bytes."""
        self.done += size
        now = time.monotonic()
        if now - self.last >= _TELL_EVERY_S:
            self.last = now
            rate = (self.done - self.first) / (now - self.started) / 1e6
            of = f" of {self.total / 1e6:.0f}" if self.total else ""
            self.tell(f"{self.what}: {self.done / 1e6:.0f}{of} MB, {rate:.1f} MB/s")


def _tables(source: str, names: Sequence[str]) -> list[str]:
    """Names of the tables in a folder: those with the commonest of the known suffixes."""
    suffixes = [s + packed for s in SUFFIXES for packed in ("", ".gz")]
    found = {s: sorted(n for n in names if n.endswith(s)) for s in suffixes}
    found = {s: named for s, named in found.items() if named}
    if not found:
        raise FileNotFoundError(f"{source} holds no table ({', '.join(SUFFIXES)})")
    if len(found) > 1:
        kinds = ", ".join(found)
        raise ValueError(f"{source} holds tables of several kinds ({kinds}): name one file")
    (named,) = found.values()
    return named


def _fetch_fsspec(source: str, copies: Path, tell: Tell) -> list[Path]:
    try:
        filesystem, place = url_to_fs(source)
    except ImportError as error:
        raise ValueError(f"{source} needs a package: {error}") from error
    if filesystem.isdir(place):
        listed = {PurePosixPath(str(p)).name: str(p) for p in filesystem.ls(place, detail=False)}
        remote = [listed[name] for name in _tables(source, list(listed))]
    elif filesystem.exists(place):
        remote = [place]
    else:
        raise FileNotFoundError(f"there is no table {source}")
    return [_copy(filesystem, path, source, copies, tell) for path in remote]


def _copy(
    filesystem: fsspec.AbstractFileSystem, remote: str, source: str, copies: Path, tell: Tell
) -> Path:
    """Copy one file, going on with what is there of it."""
    info: dict[str, Any] = filesystem.info(remote)
    state = {"url": source, "remote": remote, "bytes": info["size"]}
    state["version"] = str(filesystem.ukey(remote))
    target = copies / PurePosixPath(remote).name
    partial = _continued(target, state)
    if partial is None:
        return target
    with partial.open("ab") as out, cast("BinaryIO", filesystem.open(remote, "rb")) as file:
        file.seek(out.tell())
        report = _Progress(f"fetching {target.name}", info["size"], tell, out.tell())
        while chunk := file.read(_CHUNK):
            out.write(chunk)
            report.add(len(chunk))
    return _completed(partial, target, state, info["size"])


def _continued(target: Path, state: dict[str, Any]) -> Path | None:
    """The partial copy to go on with, empty if it is of something else; None if all is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    record = _record(target)
    partial = target.with_name(target.name + ".partial")
    known = json.loads(record.read_text()) if record.is_file() else None
    if known != state:
        partial.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        write_text(record, json.dumps(state))
    elif target.is_file() and target.stat().st_size == state["bytes"]:
        return None
    return partial


def _completed(partial: Path, target: Path, state: dict[str, Any], size: int | None) -> Path:
    found = partial.stat().st_size
    if size is not None and found != size:
        partial.unlink()
        raise OSError(f"{state['url']}: got {found} bytes of {size}; start again")
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    write_text(_record(target), json.dumps({**state, "bytes": found}))
    return target


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".fetched.json")


def _fetch_http(url: str, copies: Path, tell: Tell) -> Path:
    """Fetch a file, going on after a broken connection and after a restart."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "table"
    target = copies / name
    record = _record(target)
    if target.is_file() and record.is_file():
        known = json.loads(record.read_text())
        if known["url"] == url and known["bytes"] == target.stat().st_size:
            return target  # checked against the announced size when it was completed
    for pause_s in _PAUSES_S:
        try:
            return _fetch_http_once(url, target, tell)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise OSError(f"{url}: the server answers {error.code} {error.reason}") from error
            tell(f"fetching {name}: {error}; going on in {pause_s} s")
        except (OSError, http.client.HTTPException) as error:
            tell(f"fetching {name}: {error}; going on in {pause_s} s")
        time.sleep(pause_s)
    try:
        return _fetch_http_once(url, target, tell)
    except (OSError, http.client.HTTPException) as error:
        message = f"{url} could not be fetched ({error}): the same command goes on with it"
        raise OSError(message) from error


def _fetch_http_once(url: str, target: Path, tell: Tell) -> Path:
    partial = target.with_name(target.name + ".partial")
    record = _record(target)
    known = json.loads(record.read_text()) if record.is_file() else {}
    have = partial.stat().st_size if partial.is_file() and known.get("url") == url else 0
    headers = {"User-Agent": "tessera"}
    if have and known.get("version"):
        headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (http or https)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        partial.unlink(missing_ok=True)  # more than there is: not what the server has
        raise OSError("the part fetched before does not fit; starting over") from error
    with response:
        goes_on = response.status == 206
        length = response.headers.get("Content-Length")
        have = have if goes_on else 0
        size = int(length) + have if length is not None else None
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        weak = version is None or version.startswith("W/")
        state = {"url": url, "bytes": size, "version": None if weak else version}
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab" if goes_on else "wb") as out:
            write_text(record, json.dumps(state))
            report = _Progress(f"fetching {target.name}", size, tell, have)
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                report.add(len(chunk))
    if size is not None and partial.stat().st_size < size:
        raise OSError(f"the connection ended after {partial.stat().st_size} of {size} bytes")
    return _completed(partial, target, state, size)
