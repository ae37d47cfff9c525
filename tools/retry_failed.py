"""Try again what failed for a reason that may have passed: time-outs, 429, 5xx, broken connections.

    python tools/retry_failed.py data/cc12m
    python tools/retry_failed.py data/cc12m --also forbidden --user-agent "Mozilla/5.0 (…)"
    python tools/retry_failed.py data/cc12m --again

Takes the rows of a finished download whose last outcome over all passes may change, and downloads
them into OUT/retry-01/shards, slower and more patiently. Keys stay those of the rows, so the shards
of all passes form one data set. An unfinished retry is resumed, for the rows that it was begun for;
after a finished one nothing is done, unless `--again` asks for one more for the rows that still
fail.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages lie in the checkout

from tessera.tools import program
from tessera.tools.download.causes import RETRYABLE, Cause
from tessera.tools.download.job import Job, add_options

if TYPE_CHECKING:
    from tessera.tools.download.passes import Pass

_CHANGEABLE = ("processes", "threads", "timeout_s", "deadline_s", "retries", "user_agent")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_work, argv, stopped="stopped; the same command resumes")


def _work(words: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=program.describe(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    arguments = parser.parse_args(words)
    if importlib.util.find_spec("img2dataset") is None:
        _go_to_environment()
    return retry(arguments)


def _go_to_environment() -> None:
    """Start again in the environment of download_cc12m.sh, as this one has no img2dataset."""
    folder = Path(os.environ.get("TESSERA_DOWNLOAD_ENV") or ROOT / ".venv-download")
    named = os.environ.get("TESSERA_DOWNLOAD_PYTHON")
    python = Path(named) if named else folder / "bin" / "python"
    if not python.is_file() or python.absolute() == Path(sys.executable):
        raise ValueError(
            f"img2dataset is not installed here, and {folder} does not hold the environment that "
            "tools/download_cc12m.sh makes: run that first, or name it in TESSERA_DOWNLOAD_ENV"
        )
    os.execv(python, [str(python), *sys.argv])  # noqa: S606 - our own program, no shell


def retry(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for; returns what its JSON line says.

    Raises:
        ValueError: the first pass is unfinished or at work, or an option is wrong.
        FileNotFoundError: there is no download.
    """
    from tessera.tools.download.passes import passes_of, retry_folders
    from tessera.tools.download.run import exclusive
    from tessera.tools.download.table.prepare import write_retry_table

    out: Path = arguments.out.resolve()
    first, wanted = Job.load(out), {*RETRYABLE, *arguments.also}
    with exclusive(out):
        passes, folders = passes_of(out), retry_folders(out)
        if not passes[0].book.complete:
            raise ValueError(
                f"the first pass in {out} is not finished: the command that began it resumes"
            )
        done = [each for each in passes if each.book.complete]
        unfinished = [folder for folder in folders if folder not in [each.folder for each in done]]
        if unfinished:
            print(f"resuming {unfinished[0].name}")
            _tell_left_out(unfinished[0], _failing(done, arguments.also)[0], arguments.also)
            return _run(out, unfinished[0], wanted, arguments)
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
        folder = out / f"retry-{len(folders) + 1:02d}"
        print(f"{len(rows)} rows to retry in {folder.name}: {_text(causes)}")
        _job(out, folder, arguments)  # wrong options are told before the table is made
        folder.mkdir(parents=True, exist_ok=True)
        write_retry_table(Path(first.table), rows, folder / "table", pass_number=len(folders) + 1)
        return _run(out, folder, wanted, arguments)


def _failing(passes: list[Pass], causes: Iterable[str]) -> tuple[list[int], dict[str, int]]:
    """Rows whose last outcome is one of the causes, and how many by cause."""
    from tessera.tools.download.passes import outcomes

    listed = ", ".join(f"'{cause}'" for cause in causes) or "NULL"
    with outcomes(passes) as database:
        found = f"FROM last WHERE cause IN ({listed})"
        rows = database.execute(f"SELECT row_id {found} ORDER BY row_id").fetchnumpy()["row_id"]
        counts = f"SELECT cause, count(*) AS num {found} GROUP BY cause ORDER BY num DESC, cause"
        return rows.tolist(), dict(database.execute(counts).fetchall())


def _tell_left_out(folder: Path, rows: list[int], also: list[str]) -> None:
    """Name the rows that an unfinished pass was begun without."""
    import pyarrow.parquet as pq

    parts = sorted(str(part) for part in (folder / "table").glob("part-*"))
    taken = pq.read_table(parts, columns=["row_id"])["row_id"].to_pylist()
    if left_out := len(set(rows) - set(taken)):
        names = " ".join(also)
        print(f"it was begun without {left_out} rows that failed as {names}: once it is")
        print(f"done, --again --also {names} takes them")


def _run(
    out: Path, folder: Path, wanted: Iterable[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Download a pass whose table is there."""
    from tessera.tools.download import run
    from tessera.tools.download.passes import passes_of
    from tessera.tools.download.report import write_report

    job = _job(out, folder, arguments)
    outcome = run.run_download(job, folder)
    rows, causes = _failing(passes_of(out), wanted)
    report = write_report(out)
    print(f"retried    {outcome['num_rows']} rows, {outcome['num_successes']} pictures more")
    print(f"shards     {job.shards}, {outcome['num_shards']}")
    for cause, count in outcome["failures"].items():
        print(f"failed     {count} {cause}")
    print(f"left       {len(rows)} that could be retried ({_text(causes)})")
    print(f"report     {out / 'report' / 'report.html'}, over all passes")
    return {
        "nothing_to_retry": False,
        "folder": str(folder),
        "pass": int(folder.name.removeprefix("retry-")),
        **outcome,
        "num_still_retryable": len(rows),
        "train_num_samples": report["train_num_samples"],
    }


def _job(out: Path, folder: Path, arguments: argparse.Namespace) -> Job:
    """The first pass's job for fewer rows: fewer fetches at once, and more time for each."""
    first = Job.load(out)
    patient = {
        "threads": max(1, first.threads // 4),
        "timeout_s": first.timeout_s * 2,
        "deadline_s": first.deadline_s * 3,
    }
    given = {name: getattr(arguments, name) for name in _CHANGEABLE}
    given = {name: value for name, value in given.items() if value is not None}
    shards = f"{first.shards.rstrip('/').rpartition('/')[0]}/{folder.name}/shards"
    return replace(first, table=str(folder / "table"), shards=shards, **{**patient, **given})


def _text(causes: dict[str, int]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in causes.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
