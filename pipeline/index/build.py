"""Make an index: scan every shard, join the scans, write the tables in one step.

    INDEX/scans/*.arrow                     the scan of each shard, kept for the next time
    .INDEX.partial/scans/*.arrow            those of a run that has not come to its end
    .INDEX.part-3-of-16.partial/*.arrow     those of a part, on whichever machine it was made

A scan depends on nothing but its shard; what concerns the whole set (order, unique keys,
fingerprint) happens when they are joined. So resuming, reading only what changed, and making an
index in parts are one thing: a shard is read if none of these folders has its scan.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tessera.pipeline.durable import clear, locked_folder, sync_folder, write_text
from tessera.pipeline.index import open as layout
from tessera.pipeline.index.clues import Clues
from tessera.pipeline.index.join import Joined, fingerprint_of, join_scans
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.parts import Part, PartReport, missing_part, parts_made
from tessera.pipeline.index.queries import open_queries
from tessera.pipeline.index.remedies import example_lines, remedies
from tessera.pipeline.index.report import IndexReport, rejections_of, source_sizes, survey
from tessera.pipeline.index.scan import ShardScan, of_source, read_scan, scan_name
from tessera.pipeline.index.scan_pool import scan_shards
from tessera.pipeline.index.shard_record import shard_entry
from tessera.pipeline.index.tokenizer import TOKENIZER_NAME
from tessera.pipeline.storage import file_crc32, file_state, normalised

_DEFAULTS = ScanOptions()
_ONE_SOURCE: Mapping[str, str] = MappingProxyType({})
_KEPT_FOLDERS = ("selections",)
"""Folders of an index that outlive its being made again; what is in them checks the fingerprint."""
_SCANS = "scans"
Progress = Callable[[int, int], None]
"""Is told the bytes done and the bytes there are."""


def build_index(
    shards: Sequence[str | Path],
    index_dir: Path,
    *,
    options: ScanOptions = _DEFAULTS,
    sources: Mapping[str, str] = _ONE_SOURCE,
    rebuild: bool = False,
    join: bool = False,
    num_workers: int = 1,
    progress: Progress = lambda _done, _total: None,
) -> IndexReport:
    """Scan shards and write their index.

    The index appears under its name only when it is complete; one that is there is replaced only
    then, and stays as it is if anything goes wrong. Calling it again after it was stopped, or
    after shards were added, changed or removed, reads only what it has to.

    Args:
        shards: tar files or their URLs. They are taken in the order of their locations.
        index_dir: folder to make.
        options: what is read from every sample, and how thoroughly it is checked.
        sources: name of the source that a shard is of, by its normalised location. Keys are unique
            within a source; a shard that is not named here is of the source "".
        rebuild: read every shard, whatever is known of it.
        join: read no shard; every one was scanned by `scan_part`.
        num_workers: processes that scan, a shard each; 1 scans in this process.
        progress: called with the bytes done and the bytes there are.

    Raises:
        FileNotFoundError: a shard does not exist, or a part is missing (the message has the
            command that makes it).
        ValueError: no shards, no usable sample in them, or `index_dir` must not be replaced.
        RuntimeError: another process is making this index, or a part of it.
    """
    started = time.perf_counter()
    if join and rebuild:
        raise ValueError("join reads no shard: give rebuild to the parts")
    locations = _normalised(shards)
    directory = Path(index_dir).resolve()
    with ExitStack() as stack:
        work = stack.enter_context(_work_folder(directory))
        _restore(directory)
        _check_replaceable(directory)
        parts = parts_made(directory)
        folders = [stack.enter_context(locked_folder(part.place(directory))) for part in parts]
        if rebuild:
            shutil.rmtree(work / _SCANS, ignore_errors=True)
        stores = [] if rebuild else [work / _SCANS, *folders, directory / _SCANS]
        known = _known_scans(locations, directory, stores, options)
        new = [location for location in locations if location not in known]
        if join and new:
            named = {each: sources.get(each, "") for each in locations}
            raise FileNotFoundError(missing_part(new, named, directory, options, parts))
        paths = {each: work / _SCANS / scan_name(each, directory) for each in new}
        scan_shards(paths, options, num_workers=num_workers, progress=progress)
        found = known | {each: _written(path, each, options) for each, path in paths.items()}
        scans = [of_source(found[each], sources.get(each, "")) for each in locations]
        report = _write(scans, options, work, directory)
        _move_into_place(work, directory)
        for folder in folders:
            clear(folder)
    return replace(
        report,
        num_scanned_shards=len(new),
        num_scanned_samples=sum(found[each].num_seen for each in new),
        seconds=time.perf_counter() - started,
    )


def scan_part(
    shards: Sequence[str | Path],
    index_dir: Path,
    part: Part,
    *,
    options: ScanOptions = _DEFAULTS,
    rebuild: bool = False,
    num_workers: int = 1,
    progress: Progress = lambda _done, _total: None,
) -> PartReport:
    """Scan the shards of a part, for `build_index(..., join=True)` to join.

    Args:
        shards: all of the index, the same for every part.
        index_dir: folder of the index, on storage that all machines share.
        part: which of them are scanned here.
        options: as for `build_index`, and the same for every part.
        rebuild: as for `build_index`.
        num_workers: as for `build_index`.
        progress: as for `build_index`.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: no shards.
        RuntimeError: another process is making this part.
    """
    directory = Path(index_dir).resolve()
    locations = part.of(_normalised(shards))
    with locked_folder(part.place(directory)) as folder:
        stores = [] if rebuild else [folder, directory / _SCANS]
        known = _known_scans(locations, directory, stores, options)
        paths = {each: folder / scan_name(each, directory) for each in locations}
        new = {each: path for each, path in paths.items() if each not in known}
        scan_shards(new, options, num_workers=num_workers, progress=progress)
        known |= {each: _written(path, each, options) for each, path in new.items()}
        # Also where nothing was to be read, so that the join knows of the part.
        write_text(folder / "part.json", json.dumps({"num_shards": len(locations)}))
    num_samples = sum(scan.record.num_samples for scan in known.values())
    return PartReport(
        num_shards=len(locations),
        num_scanned_shards=len(new),
        num_samples=num_samples,
        num_rejected=sum(scan.num_seen for scan in known.values()) - num_samples,
    )


def _normalised(shards: Sequence[str | Path]) -> list[str]:
    locations = sorted({normalised(shard) for shard in shards})
    if not locations:
        raise ValueError("no shards were given")
    missing: list[str] = []
    for location in locations:
        try:
            file_state(location)
        except FileNotFoundError:
            missing.append(location)
    if missing:
        raise FileNotFoundError(f"there is no such shard: {', '.join(missing)}")
    return locations


def _check_replaceable(directory: Path) -> None:
    """Refuse to replace what is not an index, or what holds more than this would write."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file; name a folder for the index")
    if not any(directory.iterdir()):
        return
    if not (directory / layout.INDEX_FILE).is_file():
        raise ValueError(f"{directory} is not empty and not an index; name another folder")
    found = {path.stem for path in (directory / layout.CAPTIONS_DIR).glob("*.arrow")}
    others = sorted(found - {layout.DEFAULT_SOURCE})
    if others:
        msg = f"{directory} also holds the caption sources {', '.join(others)}"
        raise ValueError(f"{msg}, which would be lost; name another folder or remove it first")


@contextmanager
def _work_folder(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` to write in, for one process at a time.

    It stays when the work is stopped, so that the scans in it are used by the next run; it goes
    when the work is done, and when there is nothing in it worth keeping.
    """
    with locked_folder(directory) as work:
        try:
            yield work
        except ValueError:
            clear(work)
            raise
        except BaseException:
            if not any((work / _SCANS).glob("*.arrow")):
                clear(work)
            raise
        clear(work)


def _known_scans(
    locations: list[str], directory: Path, stores: list[Path], options: ScanOptions
) -> dict[str, ShardScan]:
    """What is known already of shards that did not change, by location."""
    known: dict[str, ShardScan] = {}
    sums = _sums_of_scans(directory)
    for location in locations:
        name = scan_name(location, directory)
        for store in stores:
            scan = read_scan(store / name, location, options)
            if scan is None or not scan.record.is_unchanged():
                continue
            if store != directory / _SCANS or file_crc32(store / name) == sums.get(name):
                known[location] = scan
                break
    return known


def _sums_of_scans(directory: Path) -> dict[str, int]:
    """CRC-32 of each scan that an index holds; of a damaged or older index none."""
    try:
        return dict(layout.read_manifest(directory).get(_SCANS, {}))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _written(path: Path, location: str, options: ScanOptions) -> ShardScan:
    scan = read_scan(path, location, options)
    if scan is None:
        raise OSError(f"the scan of {location} is gone from {path.parent}")
    return scan


def _write(
    scans: list[ShardScan], options: ScanOptions, work: Path, directory: Path
) -> IndexReport:
    """Write all files of the index into a folder of its own in `work`."""
    folder = work / "index"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    problems = {scan.record.location: scan.problem for scan in scans if scan.problem}
    clues = Clues()
    for scan in scans:
        clues.add(scan.clues)
    with open_queries(work / "spill") as queries:
        joined = join_scans(scans, options, folder, directory, queries)
        clues.num_repeated_elsewhere = joined.num_repeated_elsewhere
        if not joined.shards:
            rejected = rejections_of(folder, directory, queries)
            raise ValueError(_nothing_usable(len(scans), rejected, problems, clues, options))
        found = survey(folder, directory, queries)
    hints = remedies(found["rejections"], clues, options, found["num_samples"])
    report = IndexReport(
        index_dir=directory,
        fingerprint=fingerprint_of(folder, joined.shards),
        num_shards=len(scans),
        num_scanned_shards=0,
        num_empty_texts=sum(scan.num_empty_texts for scan in scans),
        hints=tuple(hints),
        source_sizes=source_sizes(joined.shards),
        shard_problems=problems,
        seconds=0.0,
        num_scanned_samples=0,
        **found,
    )
    _keep_scans(scans, folder / _SCANS, directory)
    _write_manifest(report, joined, options, folder)
    return report


def _nothing_usable(
    num_shards: int,
    rejected: dict[str, Any],
    problems: dict[str, str],
    clues: Clues,
    options: ScanOptions,
) -> str:
    """Why no sample of any shard can be used, and what helps."""
    reasons = [f"{count} {reason}" for reason, count in rejected["rejections"].items()]
    reasons += [f"{path}: {problem}" for path, problem in list(problems.items())[:3]]
    first = f"no usable sample in {num_shards} shards ({'; '.join(reasons)}); no index was written"
    lines = example_lines(rejected["examples"])
    return "\n  ".join([first, *lines, *remedies(rejected["rejections"], clues, options, 0)])


def _keep_scans(scans: Sequence[ShardScan], folder: Path, directory: Path) -> None:
    """Give the scans their place in the index; those of an older index stay there until it goes."""
    folder.mkdir()
    for scan in scans:
        if not isinstance(scan.place, Path):
            raise TypeError("a scan that is joined lies in a file")
        place = folder / scan_name(scan.record.location, directory)
        try:
            os.link(scan.place, place)
        except OSError:  # not every file system has links
            shutil.copyfile(scan.place, place)


def _write_manifest(
    report: IndexReport, joined: Joined, options: ScanOptions, folder: Path
) -> None:
    paths = sorted(folder.rglob("*.arrow"))
    tables = {p.relative_to(folder).as_posix(): p for p in paths if p.parent.name != _SCANS}
    manifest = {
        "format_version": layout.FORMAT_VERSION,
        "fingerprint": report.fingerprint,
        "tokenizer": TOKENIZER_NAME,
        "captions": options.captions,
        "options": options.to_json(),
        "num_samples": report.num_samples,
        "num_texts": report.num_texts,
        "rejections": report.rejections,
        "crc32": {name: file_crc32(path) for name, path in tables.items()},
        "files": {name: path.stat().st_size for name, path in tables.items()},
        "shards": [shard_entry(each, report.index_dir) for each in joined.shards],
        "unused_shards": [shard_entry(each, report.index_dir) for each in joined.unused_shards],
        _SCANS: {path.name: file_crc32(path) for path in paths if path.parent.name == _SCANS},
    }
    write_text(folder / layout.INDEX_FILE, json.dumps(manifest, indent=1))
    for parent in {path.parent for path in paths}:
        sync_folder(parent)


def _move_into_place(work: Path, directory: Path) -> None:
    """Put the new folder where the old one is; no file system swaps two folders portably."""
    for name in _KEPT_FOLDERS:
        if (directory / name).is_dir():
            shutil.copytree(directory / name, work / "index" / name)
    old = _old_folder(directory)
    if directory.exists():
        directory.rename(old)
    (work / "index").rename(directory)
    sync_folder(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _restore(directory: Path) -> None:
    """Undo a move that was killed half way."""
    old = _old_folder(directory)
    if old.is_dir() and not directory.exists():
        old.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _old_folder(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")
