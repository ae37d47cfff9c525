"""Command line of the download; `tools/download_cc12m.sh` makes its environment and starts it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.tools import program
from tessera.tools.download.job import JOB_FILE, Job, Options, add_options, from_arguments, option

if TYPE_CHECKING:  # what is large is imported where it is used, so that --help needs nothing
    from tessera.tools.download.table.summary import TableSummary

_DESCRIPTION = """\
Download CC12M, or any table of links and captions, as WebDataset shards.

After any stop or kill, the same command resumes. What is found before the start is printed;
--dry-run ends there.
"""
_CC12M = "the official cc12m.tsv"
_MOST_ROWS_PER_PART = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Source(Options):
    """Where the pictures come from."""

    source: str = option(
        "urls",
        "urls: fetch every picture from its own place. mirror: the ready-made crawl of 2021 "
        "(pixparse/cc12m-wds, about 1.1 TB) that papers train on",
        choices=("urls", "mirror"),
    )
    table: str = option(_CC12M, "file, folder or URL of TSV, CSV, JSONL or parquet")
    layout: str | None = option(
        None, "of the table, where it is found wrongly", choices=("tsv", "csv", "jsonl", "parquet")
    )
    delimiter: str | None = option(
        None, "between columns: a character, or tab, comma, semicolon, pipe"
    )
    encoding: str | None = option(None, "of the text, such as cp1252")
    url_column: str | None = option(None, "name, or number from 0")
    caption_column: str | None = option(None, "name, or number from 0")
    limit: int | None = option(None, "only so many first rows, to try")
    rows_per_host: int | None = option(None, "rows kept of one host at most")
    expected_rows: int | None = option(None, "refuse a table with another number of rows")
    mirror: str | None = option(None, "folder of a copy of the mirror; default: the hub")
    allow_missing: bool = option(False, "take a part of the mirror")


@dataclass(frozen=True, kw_only=True)
class Running(Options):
    """How the program goes about it."""

    dry_run: bool = option(False, "look and plan, download nothing but the table")
    work: str | None = option(None, "local folder of all but the shards")
    no_dns_probe: bool = option(False, "do not try the resolver first")
    ignore_disk: bool = option(False, "start with too little room")
    expected_success: float = option(
        0.65, "share of the links that gives a picture, to estimate the room", least=0
    )
    stall_seconds: float | None = option(
        None, "replace workers when no row moved for so long", least=0.001
    )
    min_free_gb: float = option(2.0, "stop when less is free, GB", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expected_success > 1:
            raise ValueError(f"--expected-success must be 0 to 1, got {self.expected_success}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_work, argv, stopped="stopped; the same command resumes")


def _work(words: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="tools/download_cc12m.sh",
        description=program.describe(_DESCRIPTION),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out = str(Path(__file__).resolve().parents[2] / "data" / "cc12m")
    where = "folder, or fsspec URL such as s3://bucket/cc12m (default: data/cc12m here)"
    parser.add_argument("out", nargs="?", default=out, metavar="OUT", help=where)
    for title, kind in (("source", Source), ("pictures and fetching", Job), ("running", Running)):
        add_options(parser.add_argument_group(title), kind)
    arguments = parser.parse_args(words)
    from tessera.tools.download.run import exclusive

    source = Source(**from_arguments(Source, arguments))
    running = Running(**from_arguments(Running, arguments))
    remote = "://" in arguments.out
    if running.work is None and remote:
        raise ValueError(
            f"{arguments.out} is remote: name a local folder for table, log and report with --work"
        )
    folder = Path(running.work or arguments.out).resolve()
    out = arguments.out.rstrip("/") if remote else str(Path(arguments.out).resolve())
    options: dict[str, Any] = from_arguments(Job, arguments) | {
        "table": str(folder / "table"),
        "shards": f"{out}/shards",
    }
    shard = Job(**options).samples_per_shard  # wrong options are told before the table is read
    with exclusive(folder):
        if source.source == "mirror":
            return _take_mirror(source, running, folder)
        table, expected = _prepare(source, folder, shard)
        job = Job(**options, extra_columns=tuple(table.extra_columns))
        return _download(running, folder, job, table, expected)


def _prepare(
    source: Source, folder: Path, samples_per_shard: int
) -> tuple[TableSummary, int | None]:
    """The table, and the rows that its source should have where that is known."""
    from tessera.tools.download.table.prepare import CC12M_ROWS, CC12M_URL, prepare_table

    names = ("layout", "url_column", "caption_column", "delimiter", "encoding", "limit")
    table = prepare_table(
        CC12M_URL if source.table == _CC12M else source.table,
        folder / "table",
        # Whole shards, since img2dataset ends one with each part.
        rows_per_part=max(1, _MOST_ROWS_PER_PART // samples_per_shard) * samples_per_shard,
        **{name: getattr(source, name) for name in (*names, "rows_per_host")},
    )
    expected = source.expected_rows
    if expected is None and table.source == CC12M_URL and source.limit is None:
        expected = CC12M_ROWS
    if expected not in (None, table.num_source_rows):
        raise ValueError(
            f"{table.source} has {table.num_source_rows} rows, not {expected}: is it whole?"
        )
    return table, expected


def _download(
    running: Running, folder: Path, job: Job, table: TableSummary, expected: int | None
) -> dict[str, Any]:
    from tessera.tools.download.report import write_report
    from tessera.tools.download.run import run_download

    job.check_same(folder)
    _check_before(running, folder, job, table)
    if running.dry_run:
        return {"dry_run": True, "folder": str(folder), "num_rows": table.num_rows}
    free = round(running.min_free_gb * 1e9)
    outcome = run_download(job, folder, stall_s=running.stall_seconds, min_free_bytes=free)
    report = write_report(folder, expected)
    page = folder / "report" / "report.html"
    share = outcome["num_successes"] / max(1, outcome["num_rows"])
    print(f"rows       {outcome['num_rows']}")
    print(f"pictures   {outcome['num_successes']} ({share:.1%}); this is train_num_samples")
    for cause, count in outcome["failures"].items():
        print(f"failed     {count} {cause}")
    print(f"shards     {outcome['num_shards']} in {job.shards}")
    print(f"report     {page}")
    print(program.next_step("tools/retry_failed.py", folder))
    print(program.next_step("tools/index_shards.py", job.shards, "--out", f"{folder}-index"))
    return {
        "folder": str(folder),
        "shards": job.shards,
        "report": str(page),
        "num_rows_expected": expected,
        **outcome,
        "train_num_samples": report["train_num_samples"],
    }


def _check_before(running: Running, folder: Path, job: Job, table: TableSummary) -> None:
    """Print what was found and what is planned.

    Raises:
        ValueError: the download must not start.
    """
    from tessera.tools.download import preflight
    from tessera.tools.download.shards import ShardBook

    rows_left = table.num_rows
    if (folder / JOB_FILE).is_file():
        book = ShardBook(folder)
        book.refresh()
        rows_left -= sum(state.num_rows for state in book.finished.values())
    needed = preflight.needed_bytes(rows_left, job, running.expected_success)
    findings = [preflight.raise_descriptors(job.threads)]
    findings.append(preflight.check_disk(needed, job.shards, ignore=running.ignore_disk))
    if not running.no_dns_probe:
        findings.append(preflight.probe_resolver(preflight.sample_hosts(Path(job.table))))
    lines = [*table.describe(), *(found.line for found in findings)]
    lines += [f"warning    {found.warning}" for found in findings if found.warning]
    lines.append(
        f"plan       {-(-table.num_rows // job.samples_per_shard)} shards of "
        f"{job.samples_per_shard} rows to {job.shards}, {job.processes or os.cpu_count() or 1} "
        f"processes x {job.threads} fetches"
    )
    if job.allow_addresses:
        networks = ", ".join(job.allow_addresses)
        lines.append(f"NOTE       {networks} may be fetched from, public or not")
    print("\n".join(lines), file=sys.stderr)
    if problems := [found.problem for found in findings if found.problem]:
        raise ValueError("; ".join(problems))


def _take_mirror(source: Source, running: Running, folder: Path) -> dict[str, Any]:
    """Take ready-made shards instead of downloading pictures one by one."""
    from tessera.pipeline.durable import write_text
    from tessera.tools.download.mirror import take_mirror

    if running.dry_run:
        return {"dry_run": True, "folder": str(folder), "source": str(source.mirror or "hub")}
    local = Path(source.mirror) if source.mirror else None
    result = take_mirror(local, folder / "shards", allow_missing=source.allow_missing)
    for name, value in result.items():
        print(f"{name:<21}{value}")
    print(program.next_step("tools/index_shards.py", folder / "shards", "--out", f"{folder}-index"))
    (folder / "report").mkdir(exist_ok=True)
    write_text(folder / "report" / "report.json", json.dumps(result, indent=1) + "\n")
    return {**result, "missing": len(result["missing"])}


if __name__ == "__main__":
    sys.exit(main())
