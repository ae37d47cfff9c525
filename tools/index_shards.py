"""Make the index of a data set: walk its tar shards, check every sample, tokenise every caption.

    python tools/index_shards.py data/cc12m/shards --out data/cc12m/index
    python tools/index_shards.py data/flickr8k-dev --out data/flickr8k/dev --captions json:captions
    python tools/index_shards.py cc3m=data/cc3m/shards cc12m=data/cc12m/shards --out data/both
    python tools/index_shards.py data/cc12m/shards --out data/cc12m/index --part 3/16

Several folders are several sources; a key is unique within its source. The same command resumes
after it was stopped, and after shards were added, changed or removed it reads only those. With
--part it scans a share of the shards, on one of several machines; --join makes the index of them.
Prints a report, and writes it as report.html and report.json into the index.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro
from tqdm import tqdm

from tessera.pipeline.durable import write_text
from tessera.pipeline.index import (
    IndexReport,
    Part,
    PartReport,
    ScanOptions,
    build_index,
    scan_part,
)
from tessera.pipeline.index.image_check import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from tessera.pipeline.index.sources import Sources, described, find_sources
from tessera.pipeline.printable import printable
from tessera.report.index import write_index_report


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Make the index of a data set: walk its tar shards, check every sample, tokenise captions."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Tar files or folders whose *.tar are taken; local, or URLs that fsspec knows (s3://, ...).
    Each folder is a source with its name, or with another as NAME=FOLDER; places of the same NAME
    are one source."""
    out: Path
    """Folder of the index. An index that is there is replaced when the new one is complete."""
    captions: str = ""
    """`txt`: the sample's .txt. `lines`: each line of it is a caption. `json:FIELD`: a string or a
    list of strings in its .json; `json:captions.text` is the field `text` of each object in the
    list `captions`. `class`: none, for labelled sets to evaluate on; the number in the sample's
    .cls stands in its place. By default what the dataset.json beside the shards says, else txt."""
    columns: tuple[str, ...] = ()
    """Fields to keep for tools/select_samples.py, from the sample's .json or the parquet beside the
    shard: `url`, or `similarity:float` for a number. By default those of the dataset.json."""
    image_suffix: tuple[str, ...] = ()
    """Suffixes of the images, such as `input.jpg`; by default jpg, jpeg, png and webp."""
    caption_suffix: str = ""
    """Suffix of the captions, such as `outputs.txt` or `text`; by default txt, or json."""
    key_to_last_dot: bool = False
    """A key goes to the last dot of a file's name, for names with dots in them; by default to the
    first, as webdataset has it."""
    keys_per_shard: bool = False
    """A key is SHARD/KEY, for shards that all number their samples anew."""
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
    part: str = ""
    """`3/16`: scan the third of 16 parts of the shards and write no index. The parts may be scanned
    on several machines that share the storage of --out, and each again if it was stopped."""
    join: bool = False
    """Write the index of the parts, which is that of one run, and read no shard. A part that is
    missing is named with its command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(
        _index,
        argv,
        stopped="stopped; the same command resumes where it was",
        failed="the same command resumes",
    )


def _index(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    if arguments.part and arguments.join:
        raise ValueError("--part scans a part, --join joins them all: give one of the two")
    part = Part.parse(arguments.part) if arguments.part else None
    report = _run(arguments, part)
    if isinstance(report, PartReport):
        print("\n".join(_part_lines(arguments.part, report)))
        return {"part": arguments.part, **asdict(report)}
    print("\n".join([*_report_lines(report), _write_report(report)]))
    print(program.next_step("train.py", "flickr8k", "--data.train", report.index_dir))
    return report.summary()


def _run(arguments: Arguments, part: Part | None) -> IndexReport | PartReport:
    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    if not arguments.shards:
        raise ValueError("name at least one tar file or a folder of them")
    sources = find_sources(arguments.shards)
    captions, columns = _wanted(arguments, sources)
    options = ScanOptions(
        captions=captions,
        full_decode=arguments.full_decode,
        columns=columns,
        sha256=arguments.sha256,
        dhash=arguments.dhash,
        max_image_pixels=arguments.max_image_pixels,
        max_image_bytes=arguments.max_image_bytes,
        image_suffix=arguments.image_suffix,
        caption_suffix=arguments.caption_suffix,
        key_to_last_dot=arguments.key_to_last_dot,
        keys_per_shard=arguments.keys_per_shard,
    )
    with tqdm(unit="B", unit_scale=True, desc="indexing", file=sys.stderr) as bar:
        if part:
            return scan_part(
                list(sources.names),
                arguments.out,
                part,
                options=options,
                rebuild=arguments.rebuild,
                num_workers=arguments.workers,
                progress=_progress_on(bar),
            )
        return build_index(
            list(sources.names),
            arguments.out,
            options=options,
            sources=sources.names,
            rebuild=arguments.rebuild,
            join=arguments.join,
            num_workers=arguments.workers,
            progress=_progress_on(bar),
        )


def _wanted(arguments: Arguments, sources: Sources) -> tuple[str, tuple[str, ...]]:
    """Captions and columns: as asked for, else as the dataset.json beside the shards say."""
    if arguments.captions and arguments.columns:
        return arguments.captions, arguments.columns
    try:
        found = described(sources.folders)
    except ValueError:
        if not arguments.captions:
            raise
        found = None
    if found is None:
        return arguments.captions or "txt", arguments.columns
    if not arguments.captions:
        columns = "" if arguments.columns else "".join(f" {each}" for each in found.columns)
        more = f" --columns{columns}" if columns else ""
        print(f"dataset.json beside the shards says --captions {found.captions}{more}: followed")
    return arguments.captions or found.captions, arguments.columns or found.columns


def _write_report(report: IndexReport) -> str:
    """Write the report's files; returns the line that names the page."""
    write_text(report.index_dir / "report.json", json.dumps(report.to_json(), indent=1))
    page = report.index_dir / "report.html"
    write_index_report(report, page)
    return f"report     {page}"


def _progress_on(bar: tqdm) -> Callable[[int, int], None]:
    def progress(done_bytes: int, total_bytes: int) -> None:
        bar.total = total_bytes
        bar.update(done_bytes - bar.n)

    return progress


def _part_lines(part: str, report: PartReport) -> list[str]:
    return [
        f"part       {part}: {report.num_shards} shards, {report.num_scanned_shards} read now",
        f"samples    {report.num_samples} usable, {report.num_rejected} rejected",
        "next       after all parts: the same command with --join in place of --part",
    ]


def _report_lines(report: IndexReport) -> list[str]:
    lines = [
        f"index      {report.index_dir}",
        f"samples    {report.num_samples} usable, {report.num_rejected} rejected",
    ]
    if len(report.source_sizes) > 1:
        sizes = (f"{name} {size}" for name, size in report.source_sizes.items())
        lines.append(f"sources    {', '.join(sizes)}; a key is written SOURCE:KEY")
    lines.append(
        f"shards     {report.num_shards}, {report.num_scanned_shards} of them read now, "
        f"{len(report.shard_problems)} with a problem"
    )
    lines += [printable(f"  {path}: {what}") for path, what in report.shard_problems.items()]
    for reason, count in report.rejections.items():
        lines.append(f"rejected   {count} {reason}")
        examples = report.examples[reason]
        lines += (
            printable(f"  {each.shard}: {each.member or each.key}: {each.detail}")
            for each in examples
        )
        if count > len(examples):
            lines.append(f"  and {count - len(examples)} more in rejected.arrow")
    lines += [f"note       {hint}" for hint in report.hints]
    widths, heights = report.image_size_range[:2], report.image_size_range[2:]
    size = f"{widths[0]} to {widths[1]} wide, {heights[0]} to {heights[1]} high (pixels)"
    mean, percentile, longest = report.tokens_per_text
    per_sample = report.num_texts / report.num_samples
    lines += [f"images     {size}", f"captions   {report.num_texts}, {per_sample:.2f} a sample"]
    if report.num_empty_texts:
        lines.append(
            f"           {report.num_empty_texts} empty ones left out of samples with others"
        )
    lines.append(f"tokens     {mean:.1f} a caption, 99% at most {percentile}, longest {longest}")
    lines += [
        f"repeated   {found.num_values - found.num_distinct} of {found.num_values} by {name}"
        for name, found in report.repetitions.items()
    ]
    return [*lines, f"took       {report.seconds:.1f} s, {report.samples_per_s:.0f} samples/s"]


if __name__ == "__main__":
    sys.exit(main())
