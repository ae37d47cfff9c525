"""The options of the download."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.download.img2dataset_job import Job
from tools.download.preflight import EXPECTED_SUCCESS
from tools.download.table.prepare import CC12M_URL

_ROOT = Path(__file__).resolve().parents[2]
_DESCRIPTION = """\
Download CC12M, or any table of links and captions, as WebDataset shards.

After any stop or kill, the same command goes on where it was. What is found before
the start is printed; --dry-run ends there."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends the program (status 2) where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="tools/download_cc12m.sh",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "out",
        nargs="?",
        default=str(_ROOT / "data" / "cc12m"),
        metavar="OUT",
        help="folder, or fsspec URL such as s3://bucket/cc12m (default: data/cc12m here)",
    )
    _add_source(parser)
    _add_pictures(parser)
    _add_fetching(parser)
    _add_running(parser)
    return parser.parse_args(argv)


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source")
    group.add_argument(
        "--source",
        choices=("urls", "mirror"),
        default="urls",
        help="urls: fetch every picture from its own place. mirror: the ready-made crawl of 2021 "
        "(pixparse/cc12m-wds, about 1.1 TB) that papers train on",
    )
    group.add_argument(
        "--table",
        default=CC12M_URL,
        metavar="PLACE",
        help="file, folder or URL of TSV, CSV, JSONL or parquet; default: the official cc12m.tsv",
    )
    group.add_argument("--layout", choices=("tsv", "csv", "jsonl", "parquet"), help="of the table")
    group.add_argument("--url-column", metavar="NAME", help="name, or number from 0")
    group.add_argument("--caption-column", metavar="NAME", help="name, or number from 0")
    group.add_argument(
        "--limit", type=_positive(int), metavar="ROWS", help="only the first, to try"
    )
    group.add_argument(
        "--expected-rows", type=_positive(int), metavar="N", help="refuse another number of rows"
    )
    group.add_argument(
        "--mirror", type=Path, metavar="FOLDER", help="local copy of the mirror; default: the hub"
    )
    group.add_argument("--count", action="store_true", help="count the samples of the mirror")
    group.add_argument("--allow-missing", action="store_true", help="take a part of the mirror")


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures")
    _add_fields(
        group,
        ("--image-size", "image_size", "PIXELS", "short side; none is enlarged"),
        ("--quality", "encode_quality", "1-100", "of the stored JPEG"),
        ("--min-image-size", "min_image_size", "PIXELS", "smaller ones are left out"),
        ("--max-aspect-ratio", "max_aspect_ratio", "RATIO", "longer ones are left out"),
        ("--max-pixels", "max_pixels", "N", "larger ones are not decoded"),
        ("--samples-per-shard", "samples_per_shard", "ROWS", "tried for one shard"),
    )
    group.add_argument(
        "--repack",
        action="store_true",
        help="at the end, rewrite the shards without their json (about 4 KB less a sample)",
    )


def _add_fetching(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fetching")
    group.add_argument(
        "--processes", type=_positive(int), metavar="N", help="default: one for each core"
    )
    _add_fields(
        group,
        ("--threads", "threads", "N", "fetches at the same time in each process"),
        ("--timeout", "timeout_s", "SECONDS", "for one wait"),
        ("--deadline", "deadline_s", "SECONDS", "for one whole try"),
        ("--max-bytes", "max_bytes", "N", "of one picture"),
        ("--retries", "retries", "N", "further tries where they can help"),
        ("--user-agent", "user_agent", "TEXT", "what the downloader calls itself"),
    )
    group.add_argument(
        "--allow-address",
        action="append",
        default=[],
        metavar="CIDR",
        help="network that may be fetched from although it is not public; may be repeated",
    )
    group.add_argument(
        "--ignore-opt-out",
        action="store_true",
        help="store pictures whose servers reserve them (X-Robots-Tag, TDM-Reservation) too",
    )
    group.add_argument(
        "--distributor",
        choices=("multiprocessing", "ray", "pyspark"),
        default="multiprocessing",
        help="default: %(default)s; the others spread over machines",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--dry-run", action="store_true", help="look and plan, download nothing")
    group.add_argument(
        "--work", type=Path, metavar="FOLDER", help="local folder of all but the shards"
    )
    group.add_argument("--no-dns-probe", action="store_true", help="do not try the resolver first")
    group.add_argument("--ignore-disk", action="store_true", help="start with too little room")
    group.add_argument(
        "--expected-success",
        type=float,
        default=EXPECTED_SUCCESS,
        metavar="SHARE",
        help="of the links, to estimate the room (default: %(default)s)",
    )
    group.add_argument(
        "--stall-seconds",
        type=_positive(float),
        metavar="SECONDS",
        help="start again when nothing moved for so long; default: by the other limits",
    )
    group.add_argument(
        "--min-free-gb",
        type=float,
        default=2.0,
        metavar="GB",
        help="stop when less is free (default: %(default)s)",
    )


def _add_fields(group: argparse._ArgumentGroup, *options: tuple[str, str, str, str]) -> None:
    """Add options that set a field of the job, which checks their values."""
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}
    for flag, name, metavar, text in options:
        default: Any = defaults[name]
        group.add_argument(
            flag,
            dest=name,
            type=type(default),
            default=default,
            metavar=metavar,
            help=f"{text} (default: %(default)s)",
        )


def _positive(kind: type) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    read.__name__ = kind.__name__
    return read
