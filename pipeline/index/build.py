"""Make an index: scan every shard, join the results, write them in one step.

Each shard is scanned on its own (`scan_shard`) and gives a result that depends on nothing else;
what concerns the whole set (order, unique keys, fingerprint) happens when the results are merged.
A shard that did not change since an earlier run is not read again: its rows come from the index
that is there, or from the scans that a run left which did not get to its end.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tessera.pipeline.durable import clear, locked_folder, sync_folder, write_text
from tessera.pipeline.index import open as layout
from tessera.pipeline.index.merge import Merged, merge
from tessera.pipeline.index.options import ScanOptions
from tessera.pipeline.index.remedies import example_lines, remedies
from tessera.pipeline.index.report import IndexReport, make_report
from tessera.pipeline.index.scan_pool import scan_shards
from tessera.pipeline.index.scan_store import Scan, load_scan, scans_of_index
from tessera.pipeline.index.shard_record import shard_entry, stored_location
from tessera.pipeline.index.tokenizer import TOKENIZER_NAME
from tessera.pipeline.storage import file_crc32, file_state, normalised

_DEFAULTS = ScanOptions()
_ONE_SOURCE: Mapping[str, str] = MappingProxyType({})
_KEPT_FOLDERS = ("selections",)
"""Folders of an index that outlive its being made again; what is in them checks the fingerprint."""


def build_index(
    shards: Sequence[str | Path],
    index_dir: Path,
    *,
    options: ScanOptions = _DEFAULTS,
    sources: Mapping[str, str] = _ONE_SOURCE,
    rebuild: bool = False,
    num_workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
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
        num_workers: processes that scan, a shard each; 1 scans in this process.
        progress: called with the bytes done and the bytes there are.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: no shards, no usable sample in them, or `index_dir` must not be replaced.
        RuntimeError: another process is making this index.
    """
    started = time.perf_counter()
    locations = _normalised(shards)
    directory = Path(index_dir).resolve()
    with _work_folder(directory) as work:
        _restore(directory)
        _check_replaceable(directory)
        if rebuild:
            shutil.rmtree(work / "scans", ignore_errors=True)
        known = {} if rebuild else _known_scans(locations, directory, work / "scans", options)
        new = [location for location in locations if location not in known]
        scan_shards(new, work / "scans", options, num_workers=num_workers, progress=progress)
        scans = [known.get(each) or _stored(work / "scans", each, options) for each in locations]
        for scan in scans:
            source = sources.get(scan.record.location, "")
            scan.record = replace(scan.record, source=source)
        merged = _write(scans, options, work, directory)
        scanned = [scan for scan in scans if scan.record.location not in known]
        report = make_report(
            merged,
            directory,
            hints=tuple(remedies(merged.rejections, merged.clues, options, merged.num_samples)),
            num_shards=len(locations),
            num_scanned_shards=len(new),
            num_empty_texts=sum(scan.num_empty_texts for scan in scans),
            shard_problems=_problems(scans),
            num_scanned_samples=sum(
                scan.record.num_samples + len(scan.rejections()) for scan in scanned
            ),
            seconds=time.perf_counter() - started,
        )
        _move_into_place(work, directory)
    return report


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
            if not any(path.is_dir() for path in (work / "scans").glob("*")):
                clear(work)
            raise
        clear(work)


def _known_scans(
    locations: list[str], directory: Path, folder: Path, options: ScanOptions
) -> dict[str, Scan]:
    """What is known already of shards that did not change, by location."""
    indexed: dict[str, Any] = {}
    if (directory / layout.INDEX_FILE).is_file():
        try:
            index, manifest = layout.open_index(directory), layout.read_manifest(directory)
            index.check_files()
            indexed = scans_of_index(index, manifest, options)
        except ValueError:
            # An index of an older format, or a damaged one: it is made again from the shards.
            indexed = {}
    known: dict[str, Scan] = {}
    for location in locations:
        scan = load_scan(folder, location, options) or indexed.get(location)
        if scan is not None and scan.record.is_unchanged():
            known[location] = scan
    return known


def _stored(folder: Path, location: str, options: ScanOptions) -> Scan:
    scan = load_scan(folder, location, options)
    if scan is None:
        raise OSError(f"the scan of {location} is gone from {folder}")
    return scan


def _problems(scans: Sequence[Scan]) -> dict[str, str]:
    return {scan.record.location: scan.problem for scan in scans if scan.problem}


def _write(scans: list[Scan], options: ScanOptions, work: Path, directory: Path) -> Merged:
    """Write all files of the index into a folder of its own in `work`."""
    folder = work / "index"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    merged = merge(scans, options, folder, directory)
    if not merged.num_samples:
        reasons = [f"{count} {reason}" for reason, count in merged.rejections.items()]
        reasons += [f"{path}: {problem}" for path, problem in list(_problems(scans).items())[:3]]
        msg = f"no usable sample in {len(scans)} shards"
        msg = f"{msg} ({'; '.join(reasons)}); no index was written"
        lines = example_lines(merged.examples)
        lines += remedies(merged.rejections, merged.clues, options, 0)
        raise ValueError("\n  ".join([msg, *lines]))
    files = sorted(path for path in folder.rglob("*.arrow"))
    manifest = {
        "format_version": layout.FORMAT_VERSION,
        "fingerprint": merged.fingerprint,
        "tokenizer": TOKENIZER_NAME,
        "captions": options.captions,
        "options": options.to_json(),
        "num_samples": merged.num_samples,
        "num_texts": merged.num_texts,
        "rejections": merged.rejections,
        "crc32": {path.relative_to(folder).as_posix(): file_crc32(path) for path in files},
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
        "about": _about(scans, directory),
        "shards": [shard_entry(record, directory) for record in merged.shards],
        "unused_shards": [shard_entry(record, directory) for record in merged.unused_shards],
    }
    write_text(folder / layout.INDEX_FILE, json.dumps(manifest, indent=1))
    for parent in {path.parent for path in files}:
        sync_folder(parent)
    return merged


def _about(scans: list[Scan], directory: Path) -> dict[str, dict[str, Any]]:
    """What is worth saying of a shard beyond its record, by location."""
    about: dict[str, dict[str, Any]] = {}
    for scan in scans:
        said: dict[str, Any] = {
            "problem": scan.problem,
            "num_empty_texts": scan.num_empty_texts,
            "clues": scan.clues.to_json() if scan.clues.is_worth_keeping else {},
        }
        if any(said.values()):
            about[stored_location(scan.record.location, directory)] = said
    return about


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
