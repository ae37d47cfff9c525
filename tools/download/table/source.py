"""Where the table comes from: local files as they are, or a copy of a URL, fetched once.

A copy lies beside the table's folder, in `source/`, and may be deleted once the table is made. A
fetch that breaks off is resumed where its server allows that.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from tessera.pipeline.durable import write_text
from tessera.tools.download.table.layout import SUFFIXES

_CHUNK = 4 << 20
_TELL_EVERY_S = 10.0
_PAUSES_S = (1.0, 4.0, 16.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A local file that rows are read from, and what it held."""

    path: str
    num_bytes: int
    mtime_ns: int
    sha256: str

    def untouched(self) -> bool:
        """Whether size and time are those recorded, so the content is taken as the same."""
        try:
            state = Path(self.path).stat()
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (self.num_bytes, self.mtime_ns)


def is_remote(source: str) -> bool:
    """Whether it is a URL that has to be copied."""
    return "://" in source and not source.startswith("file://")


def local_files(source: str, copies: Path) -> list[Path]:
    """Local files of a source, in the order in which they are read.

    Raises:
        FileNotFoundError: it does not exist or holds no table.
        ValueError: the kind of URL needs a package that is not installed.
        OSError: it could not be fetched.
    """
    try:
        files, root = url_to_fs(source if is_remote(source) else str(Path(source).expanduser()))
        if not files.exists(root):
            raise FileNotFoundError(f"there is no table {source}")
        found = [root]
        if not source.startswith("http") and files.isdir(root):
            under = [name for name in files.find(root) if "/." not in name[len(str(root)) :]]
            found = _tables(source, sorted(under))
        if is_remote(source):
            return [_fetch(files, str(name), source, copies) for name in found]
        return [Path(name) for name in found]
    except ImportError as error:
        raise ValueError(f"{source} needs a package: {error}") from error


def describe_file(path: Path) -> SourceFile:
    """Read a file through and record what it held."""
    state = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceFile(
        path=str(path), num_bytes=state.st_size, mtime_ns=state.st_mtime_ns, sha256=digest
    )


def combined_sha256(files: Sequence[SourceFile]) -> str:
    """SHA-256 of a source: of its file, or over those of all its files, in order."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()


def _tables(source: str, names: Sequence[str]) -> list[str]:
    """The tables among the files of a folder: parquet files, else those of the one kind there."""
    suffixes = [suffix + packed for suffix in SUFFIXES for packed in ("", ".gz")]
    found = {suffix: [name for name in names if name.endswith(suffix)] for suffix in suffixes}
    found = {suffix: named for suffix, named in found.items() if named}
    if ".parquet" in found:
        return found[".parquet"]
    if len(found) != 1:
        kinds = f"tables of several kinds ({', '.join(found)})" if found else "no table"
        raise (ValueError if found else FileNotFoundError)(
            f"{source} holds {kinds}: name one file; known are {', '.join(SUFFIXES)}"
        )
    return next(iter(found.values()))


def _fetch(files: Any, remote: str, source: str, copies: Path) -> Path:
    target = copies / (PurePosixPath(remote.partition("?")[0]).name or "table")
    record, partial = (target.with_name(target.name + end) for end in (".fetched.json", ".partial"))
    copies.mkdir(parents=True, exist_ok=True)
    for pause_s in _PAUSES_S:
        try:
            info = files.info(remote)
            version = info.get("ETag") or info.get("mtime") or info.get("LastModified")
            state = {
                "url": source,
                "remote": remote,
                "bytes": info["size"],
                "version": str(version),
            }
            if not record.is_file() or json.loads(record.read_text("utf-8")) != state:
                partial.unlink(missing_ok=True)
                target.unlink(missing_ok=True)
                write_text(record, json.dumps(state))
            if not target.is_file():
                _copy(files, remote, partial, info["size"])
                partial.replace(target)
            return target  # noqa: TRY300
        except FileNotFoundError:
            raise
        except Exception as error:  # of aiohttp, or of the store's own package
            if not pause_s:
                raise OSError(
                    f"{source} could not be fetched ({error!r}): the same command resumes"
                ) from error
            print(f"fetching {target.name}: {error!r}; once more in {pause_s} s", file=sys.stderr)
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def _copy(files: Any, remote: str, partial: Path, size: int | None) -> None:
    """Copy a file behind what is there of it."""
    told = time.monotonic()
    if partial.is_file() and partial.stat().st_size == size:
        return
    with partial.open("ab") as out:
        if remote.startswith("http"):
            headers = {"User-Agent": "tessera", "Range": f"bytes={out.tell()}-"}
            request = urllib.request.Request(remote, headers=headers if out.tell() else {})  # noqa: S310
            file = urllib.request.urlopen(request, timeout=60)  # noqa: S310
            if file.status != 206:  # a server without ranges
                out.truncate(0)
        else:
            file = files.open(remote, "rb", block_size=_CHUNK)
            file.seek(out.tell())
        with file:
            while chunk := file.read(_CHUNK):
                out.write(chunk)
                if time.monotonic() - told > _TELL_EVERY_S:
                    told = time.monotonic()
                    done = f"{out.tell() / 1e6:.0f} of {(size or 0) / 1e6:.0f} MB"
                    print(f"fetching {partial.stem}: {done}", file=sys.stderr)
        out.flush()
        os.fsync(out.fileno())
        if size is not None and out.tell() != size:
            raise OSError(f"got {out.tell()} bytes of {size}")
