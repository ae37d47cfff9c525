"""Make the index of a data set: walk its tar shards, check every sample, tokenise every caption.

    python tools/index_shards.py data/cc12m --out data/cc12m-index
    python tools/index_shards.py data/flickr8k-dev --out data/flickr8k/dev --captions json:captions

Prints a report and, last, one JSON line. Exit status: 0 done, 1 failed, 2 wrong use, 130 stopped.
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

from pipeline.build_index import IndexReport, build_index


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Make the index of a data set: walk its tar shards, check every sample, tokenise captions."""

    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Tar files, or folders whose *.tar are taken."""
    out: Path
    """Folder of the index. An index that is there is replaced when the new one is complete."""
    captions: str = "txt"
    """`txt`: the sample's .txt. `json:FIELD`: a string or a list of strings in its .json."""
    workers: int = os.cpu_count() or 1
    """Processes, one shard each at a time."""
    full_decode: bool = True
    """Decode every image to find the damaged ones; otherwise look at headers only."""


def main() -> int:
    """Run the tool; returns its exit status."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        report = _run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"failed: {error}; no index was written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; no index was written", file=sys.stderr)
        return 130
    _print_report(report)
    print(json.dumps(_summary(report)))
    return 0


def _run(arguments: Arguments) -> IndexReport:
    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    shards = list_shards(arguments.shards)
    with tqdm(unit="B", unit_scale=True, desc="indexing", file=sys.stderr) as bar:
        return build_index(
            shards,
            arguments.out,
            captions=arguments.captions,
            full_decode=arguments.full_decode,
            num_workers=arguments.workers,
            progress=_progress_on(bar),
        )


def list_shards(places: tuple[Path, ...]) -> list[Path]:
    """Tar files named, and the *.tar of folders named.

    Raises:
        FileNotFoundError: a place does not exist.
        ValueError: a folder holds no *.tar, or nothing was named.
    """
    if not places:
        raise ValueError("name at least one tar file or a folder of them")
    shards: list[Path] = []
    for place in places:
        if place.is_dir():
            found = sorted(place.glob("*.tar"))
            if not found:
                raise ValueError(f"the folder {place} holds no *.tar")
            shards += found
        elif place.is_file():
            shards.append(place)
        else:
            raise FileNotFoundError(f"there is no {place}")
    return shards


def _progress_on(bar: tqdm) -> Callable[[int, int], None]:
    def progress(done_bytes: int, total_bytes: int) -> None:
        bar.total = total_bytes
        bar.update(done_bytes - bar.n)

    return progress


def _print_report(report: IndexReport) -> None:
    print(f"index      {report.index_dir}")
    print(f"samples    {report.num_samples} usable, {report.num_rejected} rejected")
    print(f"shards     {report.num_shards}, {len(report.shard_problems)} with a problem")
    for path, problem in report.shard_problems.items():
        print(f"  {path}: {problem}")
    for reason, count in report.rejections.items():
        print(f"rejected   {count} {reason}")
        for example in report.examples[reason]:
            print(f"  {example.shard}: {example.member or example.key}: {example.detail}")
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
    print(f"took       {report.seconds:.1f} s, {report.samples_per_s:.0f} samples/s")


def _summary(report: IndexReport) -> dict[str, object]:
    return {
        "index_dir": str(report.index_dir),
        "fingerprint": report.fingerprint,
        "num_shards": report.num_shards,
        "num_samples": report.num_samples,
        "num_texts": report.num_texts,
        "num_rejected": report.num_rejected,
        "num_empty_texts": report.num_empty_texts,
        "rejections": report.rejections,
        "shard_problems": {str(path): text for path, text in report.shard_problems.items()},
        "seconds": round(report.seconds, 3),
        "samples_per_s": round(report.samples_per_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
