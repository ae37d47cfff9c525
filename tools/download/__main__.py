"""Command line of the download; `tools/download_cc12m.sh` makes its environment and starts it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.durable import write_text
from tools.download import preflight
from tools.download.arguments import parse
from tools.download.exit_status import run_program
from tools.download.finished import JOB_FILE, ShardBook
from tools.download.img2dataset_job import Job
from tools.download.lock import exclusive
from tools.download.mirror import fetch_mirror, take_mirror
from tools.download.repack import Repacked, repack
from tools.download.report import write_report
from tools.download.supervise import Limits, Outcome, check_job, run_download
from tools.download.table.prepare import CC12M_ROWS, CC12M_URL, TableSummary, prepare_table

_MOST_ROWS_PER_PART = 1_000_000
_PLAIN_FIELDS = (
    *("image_size", "encode_quality", "min_image_size", "max_aspect_ratio", "max_pixels"),
    *("samples_per_shard", "threads", "timeout_s", "deadline_s", "max_bytes", "retries"),
    *("user_agent", "distributor"),
)
"""Fields of the job that an option gives as they are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    arguments = parse(argv)
    return run_program(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> dict[str, object]:
    folder = _work_folder(arguments)
    with exclusive(folder):
        take = _take_mirror if arguments.source == "mirror" else _download
        return take(arguments, folder)


def _work_folder(arguments: argparse.Namespace) -> Path:
    if arguments.work is not None:
        return arguments.work.resolve()
    if "://" in arguments.out:
        raise ValueError(
            f"{arguments.out} is remote: name a local folder for table, log and report with --work"
        )
    return Path(arguments.out).resolve()


def _download(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    _job(arguments, folder, ())  # wrong options are told before the table is read, which takes long
    table = prepare_table(
        arguments.table,
        folder / "table",
        layout=arguments.layout,
        url_column=arguments.url_column,
        caption_column=arguments.caption_column,
        rows_per_part=_rows_per_part(arguments.samples_per_shard),
        limit=arguments.limit,
    )
    expected = _expected_rows(arguments, table)
    job = _job(arguments, folder, tuple(table.extra_columns))
    check_job(job, folder)
    _check_before(arguments, folder, job, table)
    if arguments.dry_run:
        return {"dry_run": True, "folder": str(folder), "num_rows": table.num_rows}
    limits = Limits(
        stall_s=arguments.stall_seconds, min_free_bytes=round(arguments.min_free_gb * 1e9)
    )
    outcome = run_download(job, folder, limits=limits)
    repacked = repack(folder) if arguments.repack else None
    print("report     counting", file=sys.stderr)
    report = write_report(folder, expected)
    _print_end(folder, job, outcome, repacked)
    return {
        "folder": str(folder),
        "shards": job.shards,
        "report": str(folder / "report" / "report.html"),
        "num_rows_expected": expected,
        "num_rows": outcome.num_rows,
        "num_successes": outcome.num_successes,
        "num_shards": outcome.num_shards,
        "failures": outcome.failures,
        "train_num_samples": report["train_num_samples"],
        "num_starts": outcome.num_starts,
        "num_quarantined": outcome.num_quarantined,
        "num_lost_workers": outcome.num_lost_workers,
        "num_repacked": 0 if repacked is None else repacked.num_shards,
        "seconds": round(outcome.seconds, 3),
    }


def _rows_per_part(samples_per_shard: int) -> int:
    """Rows of a part of the table: whole shards, since img2dataset ends one with each part."""
    return max(1, _MOST_ROWS_PER_PART // samples_per_shard) * samples_per_shard


def _expected_rows(arguments: argparse.Namespace, table: TableSummary) -> int | None:
    """How many rows the source should have.

    Raises:
        ValueError: it was told on the command line and is another number.
    """
    expected = arguments.expected_rows
    if expected is not None and expected != table.num_source_rows:
        raise ValueError(
            f"{table.source} has {table.num_source_rows} rows, not {expected}: is it whole?"
        )
    if expected is None and table.source == CC12M_URL and arguments.limit is None:
        return CC12M_ROWS
    return expected


def _job(arguments: argparse.Namespace, folder: Path, extra_columns: tuple[str, ...]) -> Job:
    remote = "://" in arguments.out
    out = arguments.out.rstrip("/") if remote else str(Path(arguments.out).resolve())
    return Job(
        table=str(folder / "table"),
        shards=f"{out}/shards",
        processes=arguments.processes or os.cpu_count() or 1,
        **{name: getattr(arguments, name) for name in _PLAIN_FIELDS},
        allow_addresses=tuple(arguments.allow_address),
        respect_opt_out=not arguments.ignore_opt_out,
        extra_columns=extra_columns,
    )


def _check_before(
    arguments: argparse.Namespace, folder: Path, job: Job, table: TableSummary
) -> None:
    """Print what was found and what is planned.

    Raises:
        ValueError: the download must not start.
    """
    found = preflight.check(
        table,
        job,
        rows_done=_rows_done(folder),
        repack=arguments.repack,
        expected_success=arguments.expected_success,
        ignore_disk=arguments.ignore_disk,
        probe_dns=not arguments.no_dns_probe,
    )
    for line in found.lines:
        print(line, file=sys.stderr)
    num_shards = -(-table.num_rows // job.samples_per_shard)
    print(
        f"plan       {num_shards} shards of {job.samples_per_shard} rows to {job.shards}, "
        f"{job.processes} processes x {job.threads} threads",
        file=sys.stderr,
    )
    if job.allow_addresses:
        networks = ", ".join(job.allow_addresses)
        print(f"NOTE       {networks} may be fetched from, public or not", file=sys.stderr)
    if found.problems:
        raise ValueError("; ".join(found.problems))


def _rows_done(folder: Path) -> int:
    if not (folder / JOB_FILE).is_file():
        return 0
    book = ShardBook(folder)
    book.refresh()
    return sum(state.num_rows for state in book.finished.values())


def _print_end(folder: Path, job: Job, outcome: Outcome, repacked: Repacked | None) -> None:
    share = outcome.num_successes / max(1, outcome.num_rows)
    print(f"rows       {outcome.num_rows}")
    print(f"pictures   {outcome.num_successes} ({share:.1%}); this is train_num_samples")
    for cause, count in outcome.failures.items():
        print(f"failed     {count} {cause}")
    print(f"shards     {outcome.num_shards} in {job.shards}")
    if repacked is not None and repacked.num_shards:
        before, after = repacked.bytes_before / 1e9, repacked.bytes_after / 1e9
        print(f"repacked   {repacked.num_shards} shards, {before:.3f} GB to {after:.3f} GB")
    print(f"report     {folder / 'report' / 'report.html'}")
    print(f"next       {sys.executable} tools/retry_failed.py {folder}")
    print(f"           python tools/index_shards.py {job.shards} --out {folder}-index")


def _take_mirror(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Take ready-made shards instead of downloading pictures one by one."""
    source = arguments.mirror
    if source is None:
        if arguments.dry_run:
            return {"dry_run": True, "folder": str(folder)}
        source = fetch_mirror(folder / "mirror")
    result = take_mirror(
        source,
        folder / "shards",
        link="leave" if arguments.dry_run else "symlink",
        count=arguments.count,
        allow_missing=arguments.allow_missing,
    )
    for line in result.describe():
        print(line)
    values = dataclasses.asdict(result)
    if arguments.dry_run:
        return {"dry_run": True, **values, "missing": len(result.missing)}
    (folder / "report").mkdir(exist_ok=True)
    write_text(folder / "report" / "report.json", json.dumps(values, indent=1) + "\n")
    return {**values, "missing": len(result.missing)}


if __name__ == "__main__":
    sys.exit(main())
