"""Make an index: scan every shard, join the results, write them in one step.

Each shard is scanned on its own (`scan_shard`) and gives a result that depends on nothing else;
what concerns the whole set (order, unique keys, fingerprint) happens when the results are merged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import index as layout
from pipeline.arrow_file import column_view, list_parts, string_parts, write_batch
from pipeline.durable import sync_folder, write_text
from pipeline.rejection import Reason, Rejection
from pipeline.scan_pool import scan_shards
from pipeline.scan_shard import ScanOptions, ShardScan
from pipeline.tokenizer import TOKENIZER_NAME

_NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """What was found while an index was made."""

    index_dir: Path
    """Where the index lies."""
    fingerprint: str
    """SHA-256 (hex) that names the data set."""
    num_shards: int
    """Shards given."""
    num_samples: int
    """Usable samples."""
    num_texts: int
    """Captions of these samples."""
    num_empty_texts: int
    """Empty captions left out of samples that have others."""
    rejections: dict[str, int]
    """Rejected samples by reason, most frequent first."""
    examples: dict[str, list[Rejection]]
    """The first few of each reason."""
    shard_problems: dict[Path, str]
    """Shards that could not be read, or not to their end, and why."""
    image_size_range: tuple[int, int, int, int]
    """Smallest and largest width, smallest and largest height, in pixels."""
    tokens_per_text: tuple[float, int, int]
    """Mean, 99th percentile and largest number of ids of a caption, without SOT and EOT."""
    seconds: float
    """Wall time."""

    @property
    def num_rejected(self) -> int:
        """Samples that cannot be used."""
        return sum(self.rejections.values())

    @property
    def samples_per_s(self) -> float:
        """Samples looked at, usable or not, per second."""
        return (self.num_samples + self.num_rejected) / max(self.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Merged:
    """The whole set in memory, as it is written."""

    samples: pa.RecordBatch
    """All usable samples."""
    captions: pa.RecordBatch
    """All their texts."""
    shards: list[ShardScan]
    """Shards with at least one usable sample; `samples.shard` counts in this list."""
    rejected: list[Rejection]
    """All rejected samples, in the order of the shards."""


def build_index(
    shards: Sequence[Path],
    index_dir: Path,
    *,
    captions: str = "txt",
    full_decode: bool = True,
    num_workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> IndexReport:
    """Scan shards and write their index.

    The index appears under its name only when it is complete; one that is there is replaced only
    then, and stays as it is if anything goes wrong.

    Args:
        shards: tar files. They are taken in the order of their resolved paths.
        index_dir: folder to make.
        captions: `txt`, or `json:FIELD` for a string or a list of strings in the sample's json.
        full_decode: decode every image, to find the damaged ones.
        num_workers: processes that scan, a shard each; 1 scans in this process.
        progress: called with the bytes done and the bytes there are.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: no shards, no usable sample in them, or `index_dir` must not be replaced.
    """
    started = time.perf_counter()
    options = ScanOptions(captions=captions, full_decode=full_decode)
    paths = _resolved(shards)
    directory = Path(index_dir).resolve()
    _check_replaceable(directory)
    with _partial_directory(directory) as partial:
        scans = scan_shards(paths, options, num_workers=num_workers, progress=progress)
        problems = {scan.path: scan.problem for scan in scans if scan.problem}
        num_empty_texts = sum(scan.num_empty_texts for scan in scans)
        merged = _merge(scans)
        _check_not_empty(merged, problems, len(paths))
        fingerprint = _fingerprint(merged)
        _write(merged, partial, directory, options, fingerprint, problems)
        _move_into_place(partial, directory)
    return IndexReport(
        index_dir=directory,
        fingerprint=fingerprint,
        num_shards=len(paths),
        num_samples=len(merged.samples),
        num_texts=len(merged.captions),
        num_empty_texts=num_empty_texts,
        rejections=_count_reasons(merged.rejected),
        examples=_examples(merged.rejected),
        shard_problems=problems,
        image_size_range=_image_size_range(merged.samples),
        tokens_per_text=_tokens_per_text(merged.captions),
        seconds=time.perf_counter() - started,
    )


def _resolved(shards: Sequence[Path]) -> list[Path]:
    paths = sorted({Path(path).resolve() for path in shards}, key=str)
    if not paths:
        raise ValueError("no shards were given")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"there is no such shard: {', '.join(missing)}")
    return paths


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
def _partial_directory(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` to write in; gone afterwards unless it was moved."""
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _merge(scans: list[ShardScan]) -> _Merged:
    """Join the shards, keeping the first sample of every key."""
    counts = np.array([len(scan.samples) for scan in scans])
    shard_of_row = np.repeat(np.arange(len(scans), dtype=np.int32), counts)
    samples = pa.concat_batches([scan.samples for scan in scans])
    captions = pa.concat_batches([scan.captions for scan in scans])
    first_rows = np.repeat(
        np.cumsum(counts) - counts, np.array([len(scan.captions) for scan in scans])
    )
    owners = column_view(captions, "sample") + first_rows
    original = _first_of_key(samples.column("key"))
    keep = original == np.arange(len(original))
    duplicates = _duplicates(scans, samples, shard_of_row, original)
    rejected = [
        rejection
        for number, scan in enumerate(scans)
        for rejection in (*scan.rejected, *duplicates.get(number, ()))
    ]
    if not keep.all():
        samples = samples.filter(pa.array(keep))
        captions = captions.filter(pa.array(keep[owners]))
        owners = (np.cumsum(keep) - 1)[owners[keep[owners]]]
    used, shard = np.unique(shard_of_row[keep], return_inverse=True)
    return _Merged(
        samples=_with_column(samples, "shard", shard.astype(np.int32)),
        captions=_with_column(captions, "sample", owners),
        shards=[scans[number] for number in used],
        rejected=rejected,
    )


def _with_column(batch: pa.RecordBatch, name: str, values: NDArray[np.generic]) -> pa.RecordBatch:
    place = batch.schema.get_field_index(name)
    return batch.set_column(place, batch.schema.field(place), pa.array(values))


def _first_of_key(keys: pa.Array) -> NDArray[np.int64]:
    """[M] the first row that has the key of each row.

    Arrow numbers distinct values in the order in which they first appear, so a row is the first
    of its key where its number is larger than all before it.
    """
    number = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    largest_before = np.concatenate([[-1], np.maximum.accumulate(number)[:-1]])
    return np.flatnonzero(number > largest_before[: len(number)])[number]


def _duplicates(
    scans: list[ShardScan],
    samples: pa.RecordBatch,
    shard_of_row: NDArray[np.int32],
    original: NDArray[np.int64],
) -> dict[int, list[Rejection]]:
    """Rejections of the samples whose key came before, by shard number."""
    by_shard: dict[int, list[Rejection]] = defaultdict(list)
    keys = samples.column("key")
    for row in np.flatnonzero(original != np.arange(len(original))).tolist():
        key = keys[row].as_py()
        number = int(shard_of_row[row])
        first = scans[shard_of_row[original[row]]].path
        where = "earlier in this shard" if scans[number].path == first else f"in {first}"
        detail = f"the key {key} is already used {where}"
        rejection = Rejection(key, str(scans[number].path), "", Reason.DUPLICATE_KEY, detail)
        by_shard[number].append(rejection)
    return by_shard


def _check_not_empty(merged: _Merged, problems: dict[Path, str], num_shards: int) -> None:
    if len(merged.samples):
        return
    reasons = [f"{count} {reason}" for reason, count in _count_reasons(merged.rejected).items()]
    reasons += [f"{path}: {problem}" for path, problem in list(problems.items())[:3]]
    msg = f"no usable sample in {num_shards} shards"
    raise ValueError(f"{msg} ({'; '.join(reasons)}); no index was written")


def _fingerprint(merged: _Merged) -> str:
    """SHA-256 over all that decides what a run sees; the folder of the shards does not."""
    digest = hashlib.sha256(f"tessera index {layout.FORMAT_VERSION}\0{TOKENIZER_NAME}\0".encode())
    names = [scan.path.name for scan in merged.shards]
    digest.update(json.dumps([names, len(merged.samples), len(merged.captions)]).encode())
    columns = [
        *string_parts(merged.samples.column("key")),
        *(column_view(merged.samples, name) for name in ("shard", "offset", "size")),
        *list_parts(merged.captions.column("tokens")),
        column_view(merged.captions, "sample"),
    ]
    for column in columns:
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _write(
    merged: _Merged,
    partial: Path,
    directory: Path,
    options: ScanOptions,
    fingerprint: str,
    problems: dict[Path, str],
) -> None:
    """Write all files of the index into `partial`, on their way to `directory`."""
    captions_file = f"{layout.CAPTIONS_DIR}/{layout.DEFAULT_SOURCE}.arrow"
    (partial / layout.CAPTIONS_DIR).mkdir()
    write_batch(partial / layout.SAMPLES_FILE, merged.samples)
    write_batch(partial / captions_file, merged.captions)
    write_batch(partial / layout.REJECTED_FILE, _rejected_batch(merged.rejected, directory))
    files = (layout.SAMPLES_FILE, captions_file, layout.REJECTED_FILE)
    counts = np.bincount(column_view(merged.samples, "shard"), minlength=len(merged.shards))
    manifest = {
        "format_version": layout.FORMAT_VERSION,
        "fingerprint": fingerprint,
        "tokenizer": TOKENIZER_NAME,
        "captions": options.captions,
        "full_decode": options.full_decode,
        "num_samples": len(merged.samples),
        "num_texts": len(merged.captions),
        "rejections": _count_reasons(merged.rejected),
        "shard_problems": {
            layout.stored_path(path, directory): problem for path, problem in problems.items()
        },
        "files": {name: (partial / name).stat().st_size for name in files},
        "shards": [
            {
                "path": layout.stored_path(scan.path, directory),
                "size_bytes": scan.size_bytes,
                "mtime_ns": scan.mtime_ns,
                "head_tail_crc32": scan.head_tail_crc32,
                "num_samples": count,
            }
            for scan, count in zip(merged.shards, counts.tolist(), strict=True)
        ],
    }
    write_text(partial / layout.INDEX_FILE, json.dumps(manifest, indent=1))
    sync_folder(partial / layout.CAPTIONS_DIR)


def _rejected_batch(rejected: list[Rejection], directory: Path) -> pa.RecordBatch:
    stored = [
        rejection._replace(shard=layout.stored_path(Path(rejection.shard), directory))
        for rejection in rejected
    ]
    columns = zip(*stored, strict=True) if stored else [()] * len(layout.REJECTED_SCHEMA)
    arrays = [pa.array(map(str, column), pa.large_string()) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=layout.REJECTED_SCHEMA)


def _move_into_place(partial: Path, directory: Path) -> None:
    """Put the new folder where the old one is; no file system swaps two folders portably."""
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    if directory.exists():
        directory.rename(old)
    try:
        partial.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    sync_folder(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _count_reasons(rejected: list[Rejection]) -> dict[str, int]:
    return dict(Counter(str(rejection.reason) for rejection in rejected).most_common())


def _examples(rejected: list[Rejection]) -> dict[str, list[Rejection]]:
    examples: dict[str, list[Rejection]] = defaultdict(list)
    for rejection in rejected:
        if len(examples[rejection.reason]) < _NUM_EXAMPLES:
            examples[rejection.reason].append(rejection)
    return dict(examples)


def _image_size_range(samples: pa.RecordBatch) -> tuple[int, int, int, int]:
    width, height = column_view(samples, "width"), column_view(samples, "height")
    return int(width.min()), int(width.max()), int(height.min()), int(height.max())


def _tokens_per_text(captions: pa.RecordBatch) -> tuple[float, int, int]:
    lengths = np.diff(list_parts(captions.column("tokens"))[0])
    ordered = np.partition(lengths, [int(0.99 * (len(lengths) - 1)), len(lengths) - 1])
    return float(lengths.mean()), int(ordered[int(0.99 * (len(lengths) - 1))]), int(ordered[-1])
