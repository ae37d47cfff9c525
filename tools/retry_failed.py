"""Try again what failed for a reason that may have passed: time-outs, 429, 5xx, broken connections.

    python tools/retry_failed.py data/cc12m
    python tools/retry_failed.py data/cc12m --also forbidden --user-agent "Mozilla/5.0 (…)"
    python tools/retry_failed.py data/cc12m --again

Takes the rows of a finished download whose last outcome over all passes may change, and downloads
them into OUT/retry-01/shards, slower and more patiently. Keys stay those of the rows, so the shards
of all passes form one data set. An unfinished retry is gone on with, for the rows that it was begun
for; after a finished one nothing is done, unless `--again` asks for one more for the rows that
still fail.

Prints one JSON line last. Exit status: 0 done or nothing to retry, 1 failed, 2 wrong use, 130
stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tools.download.causes import Cause, classify
from tools.download.exit_status import run_program
from tools.download.finished import JOB_FILE, is_complete, load_job, read_outcomes
from tools.download.img2dataset_job import Job
from tools.download.lock import exclusive
from tools.download.report import write_report
from tools.download.supervise import Outcome, run_download
from tools.download.table.prepare import load_summary, table_batches, write_retry_table

_PASS = re.compile(r"retry-(\d{2,})")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """Rows whose last outcome may change."""

    row_ids: NDArray[np.int64]
    """[N] sorted."""
    causes: dict[str, int]
    """How many by cause, most frequent first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    arguments = _arguments(argv)
    return run_program(lambda: _run_here(arguments))


def _run_here(arguments: argparse.Namespace) -> dict[str, object]:
    _enter_environment()
    return retry(arguments)


def _enter_environment() -> None:
    """Go on in the environment that download_cc12m.sh made, where this one has no img2dataset."""
    if importlib.util.find_spec("img2dataset") is not None:
        return
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TESSERA_DOWNLOAD_ENV") or root / ".venv-download")
    named = os.environ.get("TESSERA_DOWNLOAD_PYTHON")
    python = Path(named) if named else folder / "bin" / "python"
    if not python.is_file() or python.absolute() == Path(sys.executable):
        raise ValueError(
            f"img2dataset is not installed here, and {folder} does not hold the environment that "
            "tools/download_cc12m.sh makes: run that first, or name it in TESSERA_DOWNLOAD_ENV"
        )
    os.execv(python, [str(python), *sys.argv])  # noqa: S606 - a program of our own, no shell


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the download; holds job.json")
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        choices=sorted(set(Cause)),
        metavar="CAUSE",
        help="further causes to retry, such as forbidden or dns_no_host",
    )
    parser.add_argument("--again", action="store_true", help="one more retry after a finished one")
    parser.add_argument("--processes", type=int, help="default: as in the first pass")
    parser.add_argument("--threads", type=int, help="a process; default: a quarter of the first's")
    parser.add_argument("--timeout", type=float, help="seconds a wait; default: twice the first's")
    parser.add_argument(
        "--deadline", type=float, help="seconds a try; default: three times the first pass's"
    )
    parser.add_argument("--retries", type=int, help="default: as in the first pass")
    parser.add_argument("--user-agent", help="default: as in the first pass")
    return parser.parse_args(argv)


def retry(arguments: argparse.Namespace) -> dict[str, object]:
    """Do what the command line asks for; returns what its JSON line says.

    Raises:
        ValueError: the first pass is unfinished or at work, or an option is wrong.
        FileNotFoundError: there is no download.
    """
    out: Path = arguments.out.resolve()
    if not (out / JOB_FILE).is_file():
        raise FileNotFoundError(f"{out} holds no {JOB_FILE}: no download was begun there")
    wanted = {cause for cause in Cause if cause.retryable} | {
        Cause(name) for name in arguments.also
    }
    with exclusive(out):
        if not is_complete(out):
            raise ValueError(
                f"the first pass in {out} is not finished: the command that began it goes on"
            )
        passes = retry_folders(out)
        unfinished = [folder for folder in passes if not _is_done(folder)]
        if unfinished:
            folder = unfinished[0]
            print(f"going on with {folder.name}")
            earlier = [out, *passes[: passes.index(folder)]]
            if num_left_out := _left_out(folder, earlier, {Cause(name) for name in arguments.also}):
                causes = " ".join(arguments.also)
                print(f"it was begun without {num_left_out} rows that failed as {causes}: once it")
                print(f"is done, --again --also {causes} takes them")
            return _run(out, passes, folder, wanted, arguments)
        failed = still_failing([out, *passes], wanted)
        if not len(failed.row_ids) or (passes and not arguments.again):
            print("nothing to retry")
            if len(failed.row_ids):
                print(f"{len(failed.row_ids)} rows still fail ({_text(failed)}): see --again")
            return {
                "nothing_to_retry": True,
                "num_passes": len(passes),
                "num_still_retryable": len(failed.row_ids),
            }
        number = len(passes) + 1
        folder = out / f"retry-{number:02d}"
        print(f"{len(failed.row_ids)} rows to retry in {folder.name}: {_text(failed)}")
        return _run(out, [*passes, folder], folder, wanted, arguments, failed)


def retry_folders(out: Path) -> list[Path]:
    """Folders of the retries so far, in their order; a retry begins with its table.

    Raises:
        ValueError: one between them is missing, or a table is damaged.
    """
    found = sorted(
        (int(match[1]), path)
        for path in out.iterdir()
        if (match := _PASS.fullmatch(path.name)) and load_summary(path / "table")
    )
    if [number for number, _ in found] != list(range(1, len(found) + 1)):
        names = ", ".join(path.name for _, path in found)
        raise ValueError(f"{out} holds {names}, so one is missing: put it back")
    return [path for _, path in found]


def still_failing(folders: Sequence[Path], wanted: set[Cause]) -> Failed:
    """Rows whose last outcome, over passes in order, is one of the wanted causes.

    Args:
        folders: of the first pass and its retries, all finished.
        wanted: causes.
    """
    rows = np.empty(0, dtype=np.int64)
    causes = np.empty(0, dtype=np.int16)
    names = list(Cause)
    for folder in folders:
        tried, failed, why = _outcomes(folder, names)
        kept = ~np.isin(rows, tried)
        asked = np.isin(why, [names.index(cause) for cause in wanted])
        rows = np.concatenate([rows[kept], failed[asked]])
        causes = np.concatenate([causes[kept], why[asked]])
    counts = Counter({str(names[n]): int(c) for n, c in enumerate(np.bincount(causes)) if c})
    return Failed(row_ids=np.sort(rows), causes=dict(counts.most_common()))


def _outcomes(
    folder: Path, names: list[Cause]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int16]]:
    """Rows that a pass tried, those of them that failed, and the numbers of their causes."""

    @cache
    def cause_number(status: str, message: str | None) -> int:
        cause = classify(status, message)
        return -1 if cause is None else names.index(cause)

    tried, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int16)]
    for table in read_outcomes(folder, ("row_id", "status", "error_message")):
        tried.append(table.column("row_id").to_numpy())
        pairs = zip(
            table.column("status").to_pylist(),
            table.column("error_message").to_pylist(),
            strict=True,
        )
        numbers.append(np.array([cause_number(*pair) for pair in pairs], dtype=np.int16))
    rows, why = np.concatenate(tried), np.concatenate(numbers)
    return rows, rows[why >= 0], why[why >= 0]


def _left_out(folder: Path, earlier: Sequence[Path], causes: set[Cause]) -> int:
    """How many rows failed for one of the causes before a pass and are not in its table."""
    if not causes:
        return 0
    taken = [batch.column("row_id").to_numpy() for batch in table_batches(folder / "table")]
    return len(np.setdiff1d(still_failing(earlier, causes).row_ids, np.concatenate(taken)))


def _is_done(folder: Path) -> bool:
    return (folder / JOB_FILE).is_file() and is_complete(folder)


def _run(
    out: Path,
    passes: Sequence[Path],
    folder: Path,
    wanted: set[Cause],
    arguments: argparse.Namespace,
    failed: Failed | None = None,
) -> dict[str, object]:
    """Download a pass; one that begins gets its table from the rows that failed."""
    first = load_job(out)
    number = int(folder.name.removeprefix("retry-"))
    job = _job(first, folder, arguments)
    if failed:
        _write_table(Path(first.table), folder / "table", failed, number)
    outcome = run_download(job, folder)
    left = still_failing([out, *passes], wanted)
    report = write_report(out)
    _print_outcome(folder, outcome, left)
    print(f"report     {out / 'report' / 'report.html'}, over all passes")
    return {
        "nothing_to_retry": False,
        "folder": str(folder),
        "pass": number,
        "num_rows": outcome.num_rows,
        "num_successes": outcome.num_successes,
        "num_shards": outcome.num_shards,
        "failures": outcome.failures,
        "num_still_retryable": len(left.row_ids),
        "train_num_samples": report["train_num_samples"],
        "seconds": round(outcome.seconds, 3),
    }


def _job(first: Job, folder: Path, arguments: argparse.Namespace) -> Job:
    """The first pass's job for fewer rows: fewer fetches at once, and more time for each."""
    values = {
        "threads": max(1, first.threads // 4),
        "timeout_s": first.timeout_s * 2,
        "deadline_s": first.deadline_s * 3,
    }
    given = {
        "processes": arguments.processes,
        "threads": arguments.threads,
        "timeout_s": arguments.timeout,
        "deadline_s": arguments.deadline,
        "retries": arguments.retries,
        "user_agent": arguments.user_agent,
    }
    values |= {name: value for name, value in given.items() if value is not None}
    beside = first.shards.rstrip("/").rpartition("/")[0]
    return dataclasses.replace(
        first,
        table=str(folder / "table"),
        shards=f"{beside}/{folder.name}/shards",
        **values,
    )


def _write_table(source: Path, target: Path, failed: Failed, number: int) -> None:
    """Write the rows that failed as the table of their own pass."""
    summary = load_summary(source)
    if summary is None:
        raise ValueError(f"{source} holds no table: put back the table of the first pass")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = write_retry_table(_rows_of(source, failed.row_ids), target, summary, pass_number=number)
    if made.num_rows != len(failed.row_ids):
        raise ValueError(
            f"{source} holds {made.num_rows} of the {len(failed.row_ids)} rows that failed: it is "
            f"not the table of the first pass. Put that back, and remove {target}"
        )


def _rows_of(table: Path, row_ids: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Rows of a table with the given ids, which are sorted."""
    for batch in table_batches(table):
        found = batch.column("row_id").to_numpy()
        here = np.searchsorted(row_ids, found, "left") < np.searchsorted(row_ids, found, "right")
        if here.any():
            yield batch.filter(pa.array(here))


def _print_outcome(folder: Path, outcome: Outcome, left: Failed) -> None:
    print(f"retried    {outcome.num_rows} rows, {outcome.num_successes} pictures more")
    print(f"shards     {folder / 'shards'}, {outcome.num_shards}")
    for cause, count in outcome.failures.items():
        print(f"failed     {count} {cause}")
    print(f"left       {len(left.row_ids)} that could be retried ({_text(left)})")


def _text(failed: Failed) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in failed.causes.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
