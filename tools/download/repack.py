"""Making finished shards smaller: plain USTAR, pictures and captions only, in the order of keys.

img2dataset writes three members a sample with PAX headers, about 4 KB more than picture and
caption need; what its .json holds is in the shard's parquet as well. The same samples always give
the same bytes: sorted by key, one fixed time of change.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.durable import sync_folder
from pipeline.indexing.tar_walk import BLOCK_BYTES, TarMember, walk_tar
from tools.download.finished import ShardBook, shard_name
from tools.download.lock import exclusive

_PARTIAL = ".repacking"
_EXTENSIONS = ("jpg", "txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repacked:
    """What repacking did."""

    num_shards: int
    """Shards rewritten by this call."""
    num_before: int
    """Shards that were small already."""
    bytes_before: int
    """Length of the rewritten tars before."""
    bytes_after: int
    """And after."""


def repack(folder: Path, progress: Callable[[int, int], None] | None = None) -> Repacked:
    """Rewrite the shards of a complete or incomplete download that are done; others stay.

    A shard changes in one step, once its new tar is written, read back and compared, so a kill
    leaves each either old or new and the same call goes on.

    Args:
        folder: Folder of the download, holding job.json.
        progress: Called with (shards looked at, shards in all).

    Raises:
        ValueError: the shards lie on a remote store, or another process works there.
        OSError: a new tar could not be written or read back; the old one is still there.
    """
    with exclusive(folder):
        book = ShardBook(folder)
        if "://" in book.job.shards:
            raise ValueError(f"--repack works on local shards only, not on {book.job.shards}")
        root = Path(book.job.shards)
        for left in root.glob(f"*{_PARTIAL}"):
            left.unlink()
        book.refresh()
        sizes: list[tuple[int, int]] = []
        for index, number in enumerate(book.finished):
            path = root / shard_name(number, "tar")
            members = _members(path)
            if not _is_small(members):
                sizes.append((path.stat().st_size, _rewrite(path, _kept(members))))
            if progress is not None:
                progress(index + 1, len(book.finished))
        num_finished = len(book.finished)
        book.refresh()
        if len(book.finished) != num_finished:
            raise OSError(f"shards {sorted(book.broken)} are no longer right after repacking")
    return Repacked(
        num_shards=len(sizes),
        num_before=num_finished - len(sizes),
        bytes_before=sum(before for before, _ in sizes),
        bytes_after=sum(after for _, after in sizes),
    )


def _members(path: Path) -> list[TarMember]:
    with path.open("rb", buffering=1024**2) as file:
        return list(walk_tar(file, path.stat().st_size))


def _kept(members: list[TarMember]) -> list[TarMember]:
    return sorted(each for each in members if each.name.rpartition(".")[2] in _EXTENSIONS)


def _is_small(members: list[TarMember]) -> bool:
    """Whether a tar holds only what is kept, in order, one header each and nothing between."""
    place = 0
    for member in members:
        if member.offset != place + BLOCK_BYTES:
            return False
        place = member.offset + -(-member.num_bytes // BLOCK_BYTES) * BLOCK_BYTES
    return members == _kept(members)


def _rewrite(path: Path, members: list[TarMember]) -> int:
    """Replace a tar by its small form; return the new length in bytes."""
    partial = path.with_name(path.name + _PARTIAL)
    with path.open("rb") as old:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as new:
                for member in members:
                    entry = tarfile.TarInfo(member.name)
                    entry.size = member.num_bytes
                    old.seek(member.offset)
                    new.addfile(entry, old)
            file.flush()
            os.fsync(file.fileno())
        _compare(old, members, partial)
    num_bytes = partial.stat().st_size
    partial.replace(path)
    sync_folder(path.parent)
    return num_bytes


def _compare(old: BinaryIO, members: list[TarMember], partial: Path) -> None:
    with partial.open("rb") as file:
        copies = list(walk_tar(file, partial.stat().st_size))
        if [copy.name for copy in copies] != [member.name for member in members]:
            raise OSError(f"{partial} does not hold what was written to it")
        for member, copy in zip(members, copies, strict=True):
            old.seek(member.offset)
            file.seek(copy.offset)
            if old.read(member.num_bytes) != file.read(copy.num_bytes):
                raise OSError(f"{partial} reads back other bytes for {member.name}")
