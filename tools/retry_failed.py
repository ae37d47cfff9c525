"""Try again what failed for a reason that may have passed: time-outs, 429, 5xx, broken connections.

    python tools/retry_failed.py data/cc12m
    python tools/retry_failed.py data/cc12m --also forbidden --user-agent "Mozilla/5.0 (…)"
    python tools/retry_failed.py data/cc12m --again

Takes the rows of a finished download whose last outcome over all passes may change, and downloads
them into OUT/retry-01/shards, slower and more patiently. Keys stay those of the rows, so the shards
of all passes form one data set. An unfinished retry is resumed, for the rows that it was begun for;
after a finished one nothing is done, unless `--again` asks for one more for the rows that still
fail.

Prints one JSON line last. Exit status: 0 done or nothing to retry, 1 failed, 2 wrong use, 130
stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools.download.causes import RETRYABLE, Cause
from tessera.tools.download.job import JOB_FILE, Job, add_options

if TYPE_CHECKING:
    from tessera.tools.download.outcomes import Pass

_CHANGEABLE = ("processes", "threads", "timeout_s", "deadline_s", "retries", "user_agent")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
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
    changed = parser.add_argument_group(
        "fetching",
        "as in the first pass, but for a quarter of its threads, twice its timeout, three times "
        "its deadline",
    )
    add_options(changed, Job, names=_CHANGEABLE, unset=True)
    arguments = parser.parse_args(argv)
    from tessera.tools.download.processes import run_program

    return run_program(lambda: _in_environment(arguments))


def _in_environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Continue in the environment of download_cc12m.sh, where this one has no img2dataset."""
    if importlib.util.find_spec("img2dataset") is not None:
        return retry(arguments)
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TESSERA_DOWNLOAD_ENV") or root / ".venv-download")
    named = os.environ.get("TESSERA_DOWNLOAD_PYTHON")
    python = Path(named) if named else folder / "bin" / "python"
    if not python.is_file() or python.absolute() == Path(sys.executable):
        raise ValueError(
            f"img2dataset is not installed here, and {folder} does not hold the environment that "
            "tools/download_cc12m.sh makes: run that first, or name it in TESSERA_DOWNLOAD_ENV"
        )
    return os.execv(python, [str(python), *sys.argv])  # noqa: S606 - our own program, no shell


def retry(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for; returns what its JSON line says.

    Raises:
        ValueError: the first pass is unfinished or at work, or an option is wrong.
        FileNotFoundError: there is no download.
    """
    from tessera.tools.download.outcomes import passes_of, retry_folders
    from tessera.tools.download.run import exclusive
    from tessera.tools.download.table.prepare import write_retry_table

    out: Path = arguments.out.resolve()
    if not (out / JOB_FILE).is_file():
        raise FileNotFoundError(f"{out} holds no {JOB_FILE}: no download was begun there")
    also = [Cause(name) for name in arguments.also]
    wanted = [*RETRYABLE, *also]
    with exclusive(out):
        passes, folders = passes_of(out), retry_folders(out)
        if not passes[0].book.complete:
            raise ValueError(
                f"the first pass in {out} is not finished: the command that began it resumes"
            )
        done = [each.folder for each in passes if each.book.complete]
        if unfinished := [folder for folder in folders if folder not in done]:
            folder = unfinished[0]
            print(f"resuming {folder.name}")
            before = [each for each in passes if each.folder in done]
            if also and (left_out := _left_out(folder, _failing(before, also)[0])):
                names = " ".join(arguments.also)
                print(f"it was begun without {left_out} rows that failed as {names}: once it is")
                print(f"done, --again --also {names} takes them")
            return _run(out, folder, wanted, arguments)
        rows, causes = _failing(passes, wanted)
        if not rows or (folders and not arguments.again):
            print("nothing to retry")
            if rows:
                print(f"{len(rows)} rows still fail ({_text(causes)}): see --again")
            return {
                "nothing_to_retry": True,
                "num_passes": len(folders),
                "num_still_retryable": len(rows),
            }
        number = len(folders) + 1
        folder = out / f"retry-{number:02d}"
        print(f"{len(rows)} rows to retry in {folder.name}: {_text(causes)}")
        job = _job(Job.load(out), folder, arguments)
        folder.mkdir(parents=True, exist_ok=True)
        write_retry_table(Path(job.table), rows, folder / "table", pass_number=number)
        return _run(out, folder, wanted, arguments)


def _failing(passes: list[Pass], causes: Sequence[Cause]) -> tuple[list[int], dict[str, int]]:
    """Rows whose last outcome is one of the causes, and how many by cause."""
    from tessera.tools.download.outcomes import outcomes

    listed = ", ".join(f"'{cause}'" for cause in causes)
    with outcomes(passes) as database:
        found = f"FROM last WHERE cause IN ({listed})"
        rows = database.execute(f"SELECT row_id {found} ORDER BY row_id").fetchnumpy()["row_id"]
        counts = f"SELECT cause, count(*) AS num {found} GROUP BY cause ORDER BY num DESC, cause"
        return rows.tolist(), dict(database.execute(counts).fetchall())


def _left_out(folder: Path, rows: list[int]) -> int:
    """How many of the rows are not in the table of a pass."""
    import pyarrow.parquet as pq

    parts = sorted((folder / "table").glob("part-*"))
    taken = pq.read_table([str(p) for p in parts], columns=["row_id"])["row_id"].to_pylist()
    return len(set(rows) - set(taken))


def _run(
    out: Path, folder: Path, wanted: Sequence[Cause], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Download a pass whose table is there."""
    from tessera.tools.download.outcomes import passes_of
    from tessera.tools.download.report import write_report
    from tessera.tools.download.run import run_download

    job = replace(_job(Job.load(out), folder, arguments), table=str(folder / "table"))
    outcome = run_download(job, folder)
    rows, causes = _failing(passes_of(out), wanted)
    report = write_report(out)
    print(f"retried    {outcome.num_rows} rows, {outcome.num_successes} pictures more")
    print(f"shards     {job.shards}, {outcome.num_shards}")
    for cause, count in outcome.failures.items():
        print(f"failed     {count} {cause}")
    print(f"left       {len(rows)} that could be retried ({_text(causes)})")
    print(f"report     {out / 'report' / 'report.html'}, over all passes")
    return {
        "nothing_to_retry": False,
        "folder": str(folder),
        "pass": int(folder.name.removeprefix("retry-")),
        **outcome.to_json(),
        "num_still_retryable": len(rows),
        "train_num_samples": report["train_num_samples"],
    }


def _job(first: Job, folder: Path, arguments: argparse.Namespace) -> Job:
    """The first pass's job for fewer rows: fewer fetches at once, and more time for each."""
    values: dict[str, Any] = {
        "threads": max(1, first.threads // 4),
        "timeout_s": first.timeout_s * 2,
        "deadline_s": first.deadline_s * 3,
    }
    given = {name: getattr(arguments, name) for name in _CHANGEABLE}
    values |= {name: value for name, value in given.items() if value is not None}
    beside = first.shards.rstrip("/").rpartition("/")[0]
    return replace(first, shards=f"{beside}/{folder.name}/shards", **values)


def _text(causes: dict[str, int]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in causes.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
