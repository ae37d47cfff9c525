"""Ready-made shards in place of a crawl: CC12M as it was in 2021, from a folder or the hub.

About 62 % of CC12M's links are alive today. `pixparse/cc12m-wds` on the Hugging Face hub holds a
crawl of 2021: 10,968,539 pairs (88.3 %) in 2,176 tars, the count that the papers trained on. Tars
are checked and linked into OUT/shards; nothing is unpacked or copied twice.
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.indexing.tar_walk import walk_tar
from tools.download.table.source import Tell

REPOSITORY = "pixparse/cc12m-wds"
EXPECTED_SAMPLES = 10_968_539
EXPECTED_SHARDS = tuple(f"cc12m-train-{number:04d}.tar" for number in range(2176))
_INFO = "_info.json"
_BLOCK = 512
_SHOWN = 5

Link = Literal["symlink", "hardlink", "leave"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorResult:
    """Ready-made shards that were checked."""

    shards: str
    """Folder to index."""
    source: str
    """Where they came from."""
    num_shards: int
    """Whole tars there."""
    num_expected_shards: int
    """Tars that belong to the set."""
    num_bytes: int
    """Length of the tars that are there."""
    num_listed_samples: int | None
    """Samples of these tars by the list that came with them; None without counts in it."""
    num_counted_samples: int | None
    """Samples counted in the tars; None when not asked for."""
    num_expected_samples: int
    """Samples of the whole set."""
    missing: tuple[str, ...]
    """Tars that are not there; empty unless that was allowed."""
    warnings: tuple[str, ...]
    """What a person should look at."""

    def describe(self) -> list[str]:
        """Lines to print."""
        size = f"{self.num_bytes / 1e9:.1f} GB"
        lines = [
            f"mirror     {self.source}",
            f"shards     {self.num_shards} of {self.num_expected_shards}, {size}, {self.shards}",
        ]
        if self.num_counted_samples is not None:
            lines.append(f"samples    {self.num_counted_samples} counted")
        elif self.num_listed_samples is not None:
            lines.append(f"samples    {self.num_listed_samples} by its list, not counted")
        lines.append(f"expected   {self.num_expected_samples} samples in the whole set")
        return lines + [f"warning    {text}" for text in self.warnings]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listing:
    """The tars of a set."""

    counts: dict[str, int | None]
    """Samples of each tar by its name; None where not told."""
    warnings: tuple[str, ...]
    """What is odd about it."""


def fetch_mirror(
    folder: Path, *, repository: str = REPOSITORY, revision: str | None = None, workers: int = 8
) -> Path:
    """Fetch the shards from the hub; what is there already is not fetched again.

    Args:
        folder: for the tars, about 1.1 TB for CC12M.
        repository: data set on the hub.
        revision: branch, tag or commit.
        workers: files fetched at the same time.

    Returns:
        The folder.

    Raises:
        ValueError: `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            "the hub needs the package huggingface_hub (pip install huggingface_hub); or name a "
            "local copy of the shards"
        ) from error
    snapshot_download(
        repo_id=repository,
        repo_type="dataset",
        revision=revision,
        local_dir=str(folder),
        allow_patterns=["*.tar", "*info.json"],
        max_workers=workers,
    )
    return folder


def take_mirror(
    source: Path,
    shards: Path,
    *,
    link: Link = "symlink",
    count: bool = False,
    allow_missing: bool = False,
    expected_shards: Sequence[str] = EXPECTED_SHARDS,
    expected_samples: int = EXPECTED_SAMPLES,
    tell: Tell | None = None,
) -> MirrorResult:
    """Check ready-made shards and put them where the index is made from. May be repeated.

    Args:
        source: folder with the tars, and `_info.json` if it came with them.
        shards: folder to link them into, usually OUT/shards.
        link: `symlink`; `hardlink`, on the same file system only; `leave` uses them where they are.
        count: walk the headers of every tar and count its samples, against the list if that has
            counts. Finds damage in the middle too, and takes longer.
        allow_missing: take a part of the set; what is missing is told.
        expected_shards: names of all tars, where no `_info.json` tells them.
        expected_samples: samples of the whole set, where no `_info.json` tells them.
        tell: told about progress, a line each; stderr if left out.

    Raises:
        FileNotFoundError: there is no such folder, or no tar of the set in it.
        ValueError: tars are missing or damaged; the message names them.
        OSError: a link could not be made.
    """
    tell = tell or _tell_stderr
    source = Path(source).resolve()
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    listing = _listing(source, expected_shards, expected_samples)
    there = {name: source / name for name in listing.counts if (source / name).is_file()}
    missing = [name for name in listing.counts if name not in there]
    if not there:
        pattern = f"{expected_shards[0]} …" if expected_shards else "a tar"
        raise FileNotFoundError(f"{source} holds no tar of the set ({pattern})")
    if missing and not allow_missing:
        raise ValueError(
            f"{len(missing)} of {len(listing.counts)} tars are missing in {source} "
            f"({_some(missing)}): fetch them (the same command goes on where a download from the "
            "hub stopped), or allow a part of the set"
        )
    counted = _check_tars(there, listing, count=count, tell=tell)
    place = source if link == "leave" else _link_all(there, Path(shards), link)
    listed = [listing.counts[name] for name in there]
    known = [number for number in listed if number is not None]
    warnings = list(listing.warnings)
    if missing:
        warnings.append(f"{len(missing)} tars are missing: {_some(missing)}")
    return MirrorResult(
        shards=str(place),
        source=str(source),
        num_shards=len(there),
        num_expected_shards=len(listing.counts),
        num_bytes=sum(path.stat().st_size for path in there.values()),
        num_listed_samples=sum(known) if len(known) == len(listed) else None,
        num_counted_samples=counted,
        num_expected_samples=expected_samples,
        missing=tuple(missing),
        warnings=tuple(warnings),
    )


def _tell_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _listing(source: Path, expected: Sequence[str], expected_samples: int) -> _Listing:
    """The tars that belong to the set: by the list that came with it, else as expected."""
    path = source / _INFO
    if not path.is_file():
        return _Listing(counts=dict.fromkeys(expected), warnings=())
    counts: dict[str, int | None] = {}
    try:
        for split in json.loads(path.read_text("utf-8"))["splits"].values():
            counts |= _split_counts(split)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no list of shards ({error!r}): fetch it again, or remove it to check "
            "against the names of CC12M's"
        ) from error
    warnings: list[str] = []
    known = [number for number in counts.values() if number is not None]
    if len(counts) != len(expected):
        warnings.append(f"{path.name} lists {len(counts)} tars, {len(expected)} were expected")
    if len(known) == len(counts) and sum(known) != expected_samples:
        warnings.append(f"{path.name} lists {sum(known)} samples, {expected_samples} were expected")
    return _Listing(counts=counts, warnings=tuple(warnings))


def _split_counts(split: dict[str, Any]) -> dict[str, int | None]:
    names = [str(name) for name in split["filenames"]]
    for name in names:
        if Path(name).name != name or not fnmatch.fnmatch(name, "*.tar"):
            raise ValueError(f"{name} is no tar in this folder")
    lengths = split.get("shard_lengths") or [None] * len(names)
    return dict(zip(names, (None if n is None else int(n) for n in lengths), strict=True))


def _check_tars(
    there: dict[str, Path], listing: _Listing, *, count: bool, tell: Tell
) -> int | None:
    """Refuse damaged tars; returns the samples counted, if asked for."""
    broken: dict[str, str] = {}
    total = 0
    for number, (name, path) in enumerate(there.items(), start=1):
        problem = _cut_short(path)
        if problem is None and count:
            found, problem = _count(path, listing.counts[name])
            total += found
        if problem is not None:
            broken[name] = problem
        if count and number % 50 == 0:
            tell(f"mirror: {number} of {len(there)} tars counted")
    if broken:
        shown = "; ".join(f"{name} {broken[name]}" for name in list(broken)[:_SHOWN])
        more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ValueError(
            f"{len(broken)} tars are damaged: {shown}{more}. Remove them and fetch them again"
        )
    return total if count else None


def _cut_short(path: Path) -> str | None:
    """Say why a tar cannot be whole: it begins with a header and ends with two empty blocks."""
    size = path.stat().st_size
    if size < 3 * _BLOCK or size % _BLOCK:
        return f"is cut short ({size} bytes)"
    with path.open("rb") as file:
        header = file.read(_BLOCK)
        file.seek(-2 * _BLOCK, os.SEEK_END)
        tail = file.read()
    if header[257:262] != b"ustar":
        return "is no tar"
    return "is cut short (no end mark)" if any(tail) else None


def _count(path: Path, listed: int | None) -> tuple[int, str | None]:
    """Samples of a tar, and what is wrong with it."""
    try:
        with path.open("rb") as file:
            members = walk_tar(file, path.stat().st_size)
            found = len({member.name.partition(".")[0] for member in members})
    except ValueError as error:
        return 0, f"cannot be read to its end ({error})"
    if listed is not None and found != listed:
        return found, f"holds {found} samples where the list says {listed}"
    return found, None


def _link_all(there: dict[str, Path], shards: Path, link: Link) -> Path:
    """Link tars into a folder that then holds them and no others."""
    shards.mkdir(parents=True, exist_ok=True)
    strangers = [path.name for path in sorted(shards.glob("*.tar")) if path.name not in there]
    if strangers:
        raise ValueError(
            f"{shards} holds tars that are not of this set ({_some(strangers)}): name another "
            "output folder"
        )
    for name, path in there.items():
        target = shards / name
        if target.exists() and target.samefile(path):
            continue
        if target.exists() and not target.is_symlink():
            raise ValueError(f"{target} is another file than {path}: remove one of them")
        target.unlink(missing_ok=True)
        if link == "hardlink":
            target.hardlink_to(path)
        else:
            target.symlink_to(path)
    return shards
