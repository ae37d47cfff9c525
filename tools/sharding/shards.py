"""Write the shards of a data set: complete under their folder's name, or not at all."""

from __future__ import annotations

import json
import os
import random
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from tessera.pipeline.durable import sync_folder, work_folder, write_text
from tessera.pipeline.index.class_prompts import CLASS_NAMES, TEMPLATES, as_template
from tessera.pipeline.index.dataset_file import DatasetFile
from tessera.pipeline.index.rejection import RejectedSampleError
from tessera.tools.sharding.images import ImageOptions, prepare_image
from tessera.tools.sharding.samples import (
    Draft,
    Skipped,
    SkippedError,
    SkipReason,
    Source,
    read_image_file,
)
from tessera.tools.sharding.side_table import FILE_NAME, SideTable

SKIPPED_FILE = "skipped.jsonl"
_TEMPLATE = "a photo of a {c}."
_NUM_EXAMPLES = 3
_IN_FLIGHT_PER_THREAD = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """How shards are written."""

    samples_per_shard: int = 10_000
    """Samples of a shard at most."""
    least_shards: int = 1
    """Shards at least, if there are as many samples: reading in parallel takes one a process."""
    bytes_per_shard: int = 3_000_000_000
    """A shard ends after the sample that brings its content to this many bytes."""
    shuffle_seed: int | None = None
    """Seed of the order of the samples; by default they keep the order of the source."""
    template: str = ""
    """Caption of samples that have a class but no caption, and their zero-shot template; `{c}` or
    `{}` is the class name. By default `a photo of a {c}.`, and of class folders the templates that
    an evaluation of the folders takes."""
    threads: int = 1
    """Images read and prepared at the same time."""

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "least_shards", "bytes_per_shard", "threads"):
            if getattr(self, name) < 1:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} must be at least 1, got {getattr(self, name)}")
        as_template(self.template or _TEMPLATE, "--template")


@dataclass(kw_only=True, slots=True)
class PackReport:
    """What was written and what was not."""

    out: Path
    captions: str
    """What `tools/index_shards.py --captions` needs to be told."""
    num_shards: int = 0
    num_samples: int = 0
    num_captions: int = 0
    columns: list[str] = field(default_factory=list)
    """Further columns, in the table beside each shard."""
    notes: list[str] = field(default_factory=list)
    """What was found out about the format of the source."""
    num_empty_captions: int = 0
    """Empty captions left out of samples that have others."""
    num_changed: int = 0
    """Images that were converted or made smaller; the others are as they were, byte for byte."""
    num_bytes: int = 0
    """Size of the tar files."""
    skipped: dict[str, int] = field(default_factory=dict)
    """What is in no shard, by reason, most frequent first."""
    examples: dict[str, list[Skipped]] = field(default_factory=dict)
    """The first few of each reason."""
    seconds: float = 0.0

    @property
    def most_were_skipped(self) -> bool:
        """Whether more was left out than was taken."""
        return sum(self.skipped.values()) > self.num_captions


class _Prepared(NamedTuple):
    """An image as it goes into the shard."""

    data: bytes
    suffix: str
    changed: bool
    file_name: str


def make_shards(
    source: Source,
    out: Path,
    *,
    images: ImageOptions,
    options: PackOptions,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> PackReport:
    """Write a source into `out` as `00000.tar` and so on.

    The same source and options give the same bytes. Every sample has its caption as `.txt`, and
    all of them as the list `captions` of a `.json` where samples may have several; a class number
    as `.cls`. Class names and templates lie beside the shards, as zero-shot evaluation wants
    them; `dataset.json` says what an index takes, and `skipped.jsonl` what was skipped.

    Args:
        source: from `open_source`.
        out: folder to make; it must not exist, or be empty.
        images: what may be done to images.
        options: size and order of the shards.
        progress: called with the samples done and the samples there are.

    Raises:
        ValueError: `out` is in use, or no sample is usable.
        OSError: a shard cannot be written.
    """
    started = time.perf_counter()
    out = out.resolve()
    check_free(out)
    drafts = _ordered(source, options.shuffle_seed)
    beside = SideTable(source)
    report = PackReport(
        out=out,
        captions="json:captions" if source.has_lists else "txt",
        columns=beside.columns,
        notes=_notes(source),
        num_empty_captions=source.num_empty_captions,
    )
    skipped = list(source.skipped)
    most = min(options.samples_per_shard, max(1, -(-len(drafts) // options.least_shards)))
    with work_folder(out) as partial, warnings.catch_warnings():
        # Pillow warns of odd metadata and of large pictures, both of which are dealt with.
        warnings.simplefilter("ignore")
        with _shard_writer(partial, most, options.bytes_per_shard, beside.write) as write:
            prepared = _prepared(drafts, source, images, options.threads)
            for number, (draft, image) in enumerate(prepared, 1):
                if isinstance(image, Skipped):
                    skipped.append(image)
                else:
                    sample = _sample(draft, image, source, options)
                    write(sample)
                    beside.add(sample["__key__"], draft, image.file_name)
                    report.num_samples += 1
                    report.num_captions += max(1, len(draft.captions))
                    report.num_changed += image.changed
                progress(number, len(drafts))
        _count(skipped, report)
        shards = list(partial.glob("*.tar"))
        report.num_shards = len(shards)
        report.num_bytes = sum(shard.stat().st_size for shard in shards)
        _write_lists(partial, source, options, skipped)
        file_name = FILE_NAME if FILE_NAME in beside.columns else ""
        facts = DatasetFile(captions=report.captions, columns=beside.specs, file_name=file_name)
        facts.write(partial)
        check_free(out)
        partial.rename(out)
        sync_folder(out.parent)
    report.seconds = time.perf_counter() - started
    return report


def check_free(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        ValueError: `out` is a file or a folder that is not empty.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise ValueError(f"{out} is not empty; name another folder or remove it first")
    elif out.exists() or out.is_symlink():
        raise ValueError(f"{out} is a file; name a folder for the shards")


def _notes(source: Source) -> list[str]:
    if not source.num_lists_in_text:
        return source.notes
    cells = f"{source.num_lists_in_text} cells of text spell a list, read as several captions"
    return [*source.notes, cells]


def _ordered(source: Source, seed: int | None) -> list[Draft]:
    if seed is None:
        return source.drafts
    if source.fetch is not None and not source.any_order:
        msg = "the images in a parquet file can only be read in its order"
        raise ValueError(f"{msg}; leave out --shuffle-seed: training shuffles by itself")
    drafts = list(source.drafts)
    random.Random(seed).shuffle(drafts)
    return drafts


def _prepared(
    drafts: list[Draft], source: Source, images: ImageOptions, num_threads: int
) -> Iterator[tuple[Draft, _Prepared | Skipped]]:
    """Drafts in their order with their images, a bounded number of which is under way."""
    waiting: deque[tuple[Draft, Future[_Prepared | Skipped]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for draft in drafts:
                if len(waiting) >= num_threads * _IN_FLIGHT_PER_THREAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
                content = _fetched(draft, source)
                waiting.append((draft, pool.submit(_prepare, draft, content, images)))
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _fetched(draft: Draft, source: Source) -> tuple[bytes | Path, str] | Skipped:
    """The bytes in the table, which one thread reads in order, or the path; and the file's name."""
    if isinstance(draft.image, Path) or source.fetch is None:
        return Path(str(draft.image)), draft.file_name
    try:
        return source.fetch(draft.image)
    except (SkippedError, RejectedSampleError) as error:
        return Skipped(draft.where, error.reason, error.detail)


def _prepare(
    draft: Draft, content: tuple[bytes | Path, str] | Skipped, options: ImageOptions
) -> _Prepared | Skipped:
    if isinstance(content, Skipped):
        return content
    image, file_name = content
    try:
        data = read_image_file(image) if isinstance(image, Path) else image
        changed, suffix = prepare_image(data, options)
    except (SkippedError, RejectedSampleError) as error:
        return Skipped(draft.where, error.reason, error.detail)
    return _Prepared(changed, suffix, changed is not data, file_name)


def _sample(draft: Draft, image: _Prepared, source: Source, options: PackOptions) -> dict[str, Any]:
    """The sample as webdataset's writer takes it."""
    captions = draft.captions
    if not captions:
        name = str(draft.label)
        if source.class_names is not None and isinstance(draft.label, int):
            name = source.class_names[draft.label]
        captions = [_template(options).replace("{c}", name)]
    sample: dict[str, Any] = {"__key__": f"{draft.number:09d}", image.suffix: image.data}
    sample["txt"] = captions[0].encode()
    if source.has_lists:
        sample["json"] = json.dumps({"captions": captions}, ensure_ascii=False).encode()
    if draft.label is not None:
        sample["cls"] = str(draft.label).encode()
    return sample


def _template(options: PackOptions) -> str:
    return as_template(options.template or _TEMPLATE, "--template")


@contextmanager
def _shard_writer(
    folder: Path, most_samples: int, most_bytes: int, completed: Callable[[Path], None]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """The writer of webdataset, with every shard on the disk before the next one is begun."""
    from webdataset.writer import ShardWriter

    opened: list[IO[bytes]] = []

    def opener(name: str) -> IO[bytes]:
        opened.append((folder / name).open("xb"))
        return opened[-1]

    def post(name: str) -> None:
        opened[-1].flush()
        os.fsync(opened[-1].fileno())
        opened[-1].close()
        completed(folder / name)

    plain = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}
    sizes = {"maxcount": most_samples, "maxsize": most_bytes}
    try:
        with ShardWriter(
            "%05d.tar", post=post, opener=opener, verbose=0, **sizes, **plain
        ) as writer:
            yield writer.write
    finally:
        for file in opened:
            file.close()


def _write_lists(
    folder: Path, source: Source, options: PackOptions, skipped: list[Skipped]
) -> None:
    if source.class_names is not None:
        named = source.templates if source.templates and not options.template else None
        for name, entries in (
            (CLASS_NAMES, source.class_names),
            (TEMPLATES, named or [_template(options)]),
        ):
            write_text(folder / name, "".join(f"{each}\n" for each in entries))
    if skipped:
        lines = [json.dumps(entry._asdict()) + "\n" for entry in skipped]
        write_text(folder / SKIPPED_FILE, "".join(lines))


def _count(skipped: list[Skipped], report: PackReport) -> None:
    """Count what was skipped.

    Raises:
        ValueError: nothing else is there.
    """
    report.skipped = dict(Counter(str(entry.reason) for entry in skipped).most_common())
    for reason in report.skipped:
        some = [entry for entry in skipped if str(entry.reason) == reason]
        report.examples[reason] = some[:_NUM_EXAMPLES]
    if not report.num_samples:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items())
        most, first = next(iter(report.skipped)), skipped[0]
        remedy = "; name the folder that the paths begin in with --images"
        raise ValueError(
            f"no usable sample ({counts}); {first.where}: {first.detail}"
            f"{remedy if most == SkipReason.MISSING_FILE else ''}"
        )
