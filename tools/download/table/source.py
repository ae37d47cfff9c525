"""Where the table comes from: local files as they are, or a copy of a URL, fetched once.

A copy lies beside the table's folder, in `source/`, and may be deleted once the table is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.callbacks import TqdmCallback
from fsspec.core import url_to_fs

_SUFFIXES = (".parquet", ".tsv", ".csv", ".txt", ".jsonl", ".ndjson", ".json")


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
    except ImportError as error:
        raise ValueError(f"{source} needs a package: {error}") from error
    if not files.exists(root):
        raise FileNotFoundError(f"there is no table {source}")
    found = [str(root)]
    if not source.startswith("http") and files.isdir(root):
        found = [name for name in files.find(root) if "/." not in name[len(str(root)) :]]
        found = _tables(source, sorted(found))
    return [_copy(files, name, copies) if is_remote(source) else Path(name) for name in found]


def describe_file(path: Path) -> dict[str, Any]:
    """Read a file through and record what it held."""
    state = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stamp = {"num_bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
    return {"path": str(path), **stamp, "sha256": digest}


def is_untouched(described: dict[str, Any]) -> bool:
    """Whether size and time are those recorded, so the content is taken as the same."""
    try:
        state = Path(described["path"]).stat()
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (described["num_bytes"], described["mtime_ns"])


def combined_sha256(files: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of a source: of its file, or over those of all its files, in order."""
    if len(files) == 1:
        return files[0]["sha256"]
    return hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest()


def _tables(source: str, names: Sequence[str]) -> list[str]:
    """The tables among the files of a folder: parquet files, else those of the one kind there."""
    suffixes = [suffix + packed for suffix in _SUFFIXES for packed in ("", ".gz", ".bz2", ".xz")]
    found = {suffix: [name for name in names if name.endswith(suffix)] for suffix in suffixes}
    found = {suffix: named for suffix, named in found.items() if named}
    if ".parquet" in found:
        return found[".parquet"]
    if len(found) != 1:
        kinds = f"tables of several kinds ({', '.join(found)})" if found else "no table"
        raise (ValueError if found else FileNotFoundError)(
            f"{source} holds {kinds}: name one file; known are {', '.join(_SUFFIXES)}"
        )
    return next(iter(found.values()))


def _copy(files: Any, remote: str, copies: Path) -> Path:
    target = copies / (PurePosixPath(remote.partition("?")[0]).name or "table")
    if target.is_file():
        return target
    copies.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        progress = {"desc": "fetching the table", "unit": "B", "unit_scale": True, "mininterval": 2}
        files.get_file(remote, str(partial), callback=TqdmCallback(tqdm_kwargs=progress))
        if (size := files.info(remote).get("size")) not in (None, partial.stat().st_size):
            raise OSError(f"got {partial.stat().st_size} bytes of {size}")  # noqa: TRY301
    except Exception as error:  # of aiohttp, or of the store's own package
        raise OSError(f"{remote} could not be fetched ({error!r}): try again") from error
    return partial.replace(target)
