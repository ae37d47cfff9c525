"""Pack your own pictures and captions into the shards that training and evaluation read.

    python tools/make_shards.py captions.csv --images photos --out data/mine
    python tools/make_shards.py photos --out data/mine              (a.jpg beside a.txt)
    python tools/make_shards.py flowers --out data/flowers --labels-from-folders
    python tools/make_shards.py saved_dataset --out data/mine --split train

Takes a table (CSV and its kin, JSON lines, a JSON list or map, COCO's captions, Flickr's token.txt,
parquet), a Hugging Face data set (a folder of parquet files, or one saved to disk), or a folder of
pictures. Image files are copied byte for byte unless a size or --convert is asked for.
If most of the source was skipped, the exit status is 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import tyro
from tqdm import tqdm

from tessera.pipeline.printable import printable
from tessera.tools.sharding import ImageOptions, PackOptions, PackReport, SourceOptions
from tessera.tools.sharding import make_shards as pack
from tessera.tools.sharding.shards import SKIPPED_FILE, check_free
from tessera.tools.sharding.sources import open_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Pack pictures and captions into shards."""

    source: tyro.conf.Positional[Path]
    """A table, a Hugging Face data set, or a folder of pictures."""
    out: Path
    """Folder of the shards. It must not exist, or be empty."""
    content: tyro.conf.OmitArgPrefixes[SourceOptions] = field(default_factory=SourceOptions)
    """Where in the source things are."""
    images_as: tyro.conf.OmitArgPrefixes[ImageOptions] = field(default_factory=ImageOptions)
    """What may be done to images."""
    shards: tyro.conf.OmitArgPrefixes[PackOptions] = field(
        default_factory=lambda: PackOptions(
            threads=os.cpu_count() or 1, least_shards=os.cpu_count() or 1
        )
    )
    """How shards are written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(
        _pack,
        argv,
        stopped="stopped; no shards were written",
        failed="no shards were written",
    )


def _pack(words: list[str]) -> dict[str, object] | program.Ended:
    report = _run(tyro.cli(Arguments, args=words, description=program.describe(__doc__)))
    _print_report(report)
    if not report.most_were_skipped:
        return _summary(report)
    num_skipped = sum(report.skipped.values())
    print(
        f"failed: {num_skipped} entries of the source were skipped and only "
        f"{report.num_samples} taken, for the reasons above; see {report.out / SKIPPED_FILE}",
        file=sys.stderr,
    )
    return program.Ended(result=_summary(report), status=program.FAILED)


def _run(arguments: Arguments) -> PackReport:
    check_free(arguments.out.resolve())
    print(f"reading {arguments.source}", file=sys.stderr)
    source = open_source(arguments.source, arguments.content)
    with tqdm(total=len(source.drafts), unit="img", desc="packing", file=sys.stderr) as bar:
        return pack(
            source,
            arguments.out,
            images=arguments.images_as,
            options=arguments.shards,
            progress=_progress_on(bar),
        )


def _progress_on(bar: tqdm) -> Callable[[int, int], None]:
    def progress(done: int, _total: int) -> None:
        bar.update(done - bar.n)

    return progress


def _print_report(report: PackReport) -> None:
    print(f"shards     {report.num_shards} in {report.out}, {report.num_bytes / 1e6:.1f} MB")
    print(f"samples    {report.num_samples}, captions {report.num_captions}")
    for note in report.notes:
        print(printable(f"read as    {note}"))
    if report.num_empty_captions:
        print(f"           {report.num_empty_captions} empty captions left out")
    print(f"images     {report.num_changed} changed, the others as they were")
    for reason, count in report.skipped.items():
        print(f"skipped    {count} {reason}")
        for example in report.examples[reason]:
            print(printable(f"  {example.where}: {example.detail}"))
        if count > len(report.examples[reason]):
            print(f"  and {count - len(report.examples[reason])} more in {SKIPPED_FILE}")
    print(f"took       {report.seconds:.1f} s")
    print(f"next       python tools/index_shards.py {report.out} --out INDEX")


def _summary(report: PackReport) -> dict[str, object]:
    return {
        "out": str(report.out),
        "captions": report.captions,
        "columns": report.columns,
        "num_shards": report.num_shards,
        "num_samples": report.num_samples,
        "num_captions": report.num_captions,
        "num_empty_captions": report.num_empty_captions,
        "num_changed": report.num_changed,
        "num_bytes": report.num_bytes,
        "num_skipped": sum(report.skipped.values()),
        "skipped": report.skipped,
        "seconds": round(report.seconds, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
