"""Make the index of a data set: walk its tar shards, check every sample, tokenise every caption.

    python tools/index_shards.py data/cc12m/shards data/cc12m/retry-01/shards --out data/cc12m/index
    python tools/index_shards.py data/flickr8k-dev --out data/flickr8k/dev --captions json:captions

The same command goes on after it was stopped, and after shards were added, changed or removed it
reads only those. Prints a report, writes it as report.html and report.json into the index, and
prints one JSON line last. Exit status: 0 done, 1 failed, 2 wrong use, 130 stopped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from evaluation.index_report import write_index_report
from pipeline.durable import write_text
from pipeline.index import open_index
from pipeline.indexing import IndexReport, ScanOptions, build_index
from pipeline.indexing.image_check import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from pipeline.indexing.other_loaders import write_dali_indexes, write_key_list
from pipeline.printable import printable
from pipeline.storage import list_shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Make the index of a data set: walk its tar shards, check every sample, tokenise captions."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Tar files or folders whose *.tar are taken; local, or URLs that fsspec knows (s3://, ...)."""
    out: Path
    """Folder of the index. An index that is there is replaced when the new one is complete."""
    captions: str = "txt"
    """`txt`: the sample's .txt. `lines`: each line of it is a caption. `json:FIELD`: a string or a
    list of strings in its .json. `class`: none, for labelled sets to evaluate on; the number in the
    sample's .cls stands in its place."""
    columns: tuple[str, ...] = ()
    """Fields to keep for tools/select_samples.py, from the sample's .json or the parquet beside the
    shard: `url`, or `similarity:float` for a number."""
    sha256: bool = False
    """Keep the SHA-256 of every image file, and report repeated files."""
    dhash: bool = False
    """Keep a 64-bit difference hash of every picture, and report look-alike ones."""
    full_decode: bool = True
    """Decode every image to find the damaged ones; otherwise look at headers only."""
    max_image_pixels: int = MAX_IMAGE_PIXELS
    """Pictures that claim more pixels are rejected before they are decoded."""
    max_image_bytes: int = MAX_IMAGE_BYTES
    """Larger image files are rejected before they are read."""
    workers: int = os.cpu_count() or 1
    """Processes, one shard each at a time."""
    rebuild: bool = False
    """Read every shard again, whether it changed or not."""
    dali_idx: Path | None = None
    """Folder for the .idx files that DALI's webdataset reader takes, usable samples alone."""
    filter: Path | None = None
    """File for a list of the usable samples: shard, tab, key."""


def main() -> int:
    """Run the tool; returns its exit status."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        report = _run(arguments)
        _print_report(report)
        _write_extras(arguments, report)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"failed: {error}; the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    print(json.dumps(report.summary()))
    return 0


def _run(arguments: Arguments) -> IndexReport:
    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    if not arguments.shards:
        raise ValueError("name at least one tar file or a folder of them")
    options = ScanOptions(
        captions=arguments.captions,
        full_decode=arguments.full_decode,
        columns=arguments.columns,
        sha256=arguments.sha256,
        dhash=arguments.dhash,
        max_image_pixels=arguments.max_image_pixels,
        max_image_bytes=arguments.max_image_bytes,
    )
    shards = [shard for place in arguments.shards for shard in list_shards(place)]
    with tqdm(unit="B", unit_scale=True, desc="indexing", file=sys.stderr) as bar:
        return build_index(
            shards,
            arguments.out,
            options=options,
            rebuild=arguments.rebuild,
            num_workers=arguments.workers,
            progress=_progress_on(bar),
        )


def _write_extras(arguments: Arguments, report: IndexReport) -> None:
    """The report's files, and what other loaders need."""
    write_text(report.index_dir / "report.json", json.dumps(report.to_json(), indent=1))
    page = report.index_dir / "report.html"
    write_index_report(report, page)
    print(f"report     {page}")
    if arguments.dali_idx is not None:
        files = write_dali_indexes(open_index(report.index_dir), arguments.dali_idx)
        print(f"DALI       {len(files)} .idx files in {arguments.dali_idx}")
    if arguments.filter is not None:
        write_key_list(open_index(report.index_dir), arguments.filter)
        print(f"filter     {arguments.filter}")


def _progress_on(bar: tqdm) -> Callable[[int, int], None]:
    def progress(done_bytes: int, total_bytes: int) -> None:
        bar.total = total_bytes
        bar.update(done_bytes - bar.n)

    return progress


def _print_report(report: IndexReport) -> None:
    print(f"index      {report.index_dir}")
    print(f"samples    {report.num_samples} usable, {report.num_rejected} rejected")
    print(
        f"shards     {report.num_shards}, {report.num_scanned_shards} of them read now, "
        f"{len(report.shard_problems)} with a problem"
    )
    for path, problem in report.shard_problems.items():
        print(printable(f"  {path}: {problem}"))
    for reason, count in report.rejections.items():
        print(f"rejected   {count} {reason}")
        for example in report.examples[reason]:
            member = example.member or example.key
            print(printable(f"  {example.shard}: {member}: {example.detail}"))
        if count > len(report.examples[reason]):
            print(f"  and {count - len(report.examples[reason])} more in rejected.arrow")
    widths, heights = report.image_size_range[:2], report.image_size_range[2:]
    print(f"images     {widths[0]} to {widths[1]} wide, {heights[0]} to {heights[1]} high (pixels)")
    mean, percentile, longest = report.tokens_per_text
    per_sample = report.num_texts / report.num_samples
    print(f"captions   {report.num_texts}, {per_sample:.2f} a sample")
    if report.num_empty_texts:
        print(f"           {report.num_empty_texts} empty ones left out of samples with others")
    print(f"tokens     {mean:.1f} a caption, 99% at most {percentile}, longest {longest}")
    for name, found in report.repetitions.items():
        print(f"repeated   {found.num_values - found.num_distinct} of {found.num_values} by {name}")
    print(f"took       {report.seconds:.1f} s, {report.samples_per_s:.0f} samples/s")


if __name__ == "__main__":
    sys.exit(main())
