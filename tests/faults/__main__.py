"""Injects faults into every kind of job, for minutes or for hours, and records what became of them.

    python -m tests.faults --out FAULTS                     every fault once
    python -m tests.faults --out FAULTS --minutes 120       round after round, for two hours
    python -m tests.faults --out FAULTS --only stalled --rounds 10

A fault counts as survived if the job ended in bounded time with a message that names the cause (or
went on), the same command then led to what an undisturbed run gives, no sample was lost or served
twice, and nothing is left behind: no process, no half-written or temporary file. Moments are drawn
from the seed; a round's faults can be injected again by its seed. Prints a table and, last, one
JSON line; FAULTS gets the record (faults.json) and the table (faults.md). Exit status: 0 all
survived, 1 some not, 2 wrong use, 130 stopped.
"""

from __future__ import annotations

import json
import random
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from tessera.training.environment import machine
from tests.faults import data_faults, rank_faults, tool_faults, training_faults
from tests.faults.bench import Bench, WrongRunError
from tests.faults.outcome import Fault, Outcome, SkippedError
from tests.faults.processes import ROOT
from tests.faults.table import summary, table

FAULTS: dict[str, Fault] = {
    **tool_faults.FAULTS,
    **training_faults.FAULTS,
    **rank_faults.FAULTS,
    **data_faults.FAULTS,
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Inject faults."""

    out: Path
    """Folder of the record; must not exist."""
    minutes: float = 0.0
    """Begin no further round after so long; 0 goes by --rounds."""
    rounds: int = 1
    """How often each fault is injected where --minutes is 0."""
    seed: int = 1
    """Of the first round; each further one adds 1."""
    only: tuple[str, ...] = ()
    """Faults whose names hold one of these words; all if none is given."""

    def __post_init__(self) -> None:
        if self.out.exists():
            raise ValueError(f"{self.out} exists: name another folder with --out")
        if not self.chosen:
            raise ValueError(f"no fault holds one of {self.only}: there are {', '.join(FAULTS)}")

    @property
    def chosen(self) -> dict[str, Fault]:
        """The faults to inject, by name."""
        return {
            name: fault
            for name, fault in FAULTS.items()
            if not self.only or any(word.lower() in name.lower() for word in self.only)
        }


def main() -> int:
    """Run the program; returns its exit status."""
    try:
        arguments = tyro.cli(Arguments, description=__doc__)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    injections: list[dict[str, Any]] = []
    try:
        inject_all(arguments, injections)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(arguments.out / "work", ignore_errors=True)
    words = f"--minutes {arguments.minutes:g}" if arguments.minutes else ""
    words = words or f"--rounds {arguments.rounds}"
    if arguments.only:
        words += f" --only {shlex.join(arguments.only)}"
    record = {
        "command": f"python -m tests.faults --out FAULTS {words} --seed {arguments.seed}",
        "environment": machine(torch.device("cpu")),
        "injections": injections,
    }
    found = summary(injections)
    lines = "\n".join(table(record, found))
    (arguments.out / "faults.md").write_text(lines + "\n", encoding="utf-8")
    text = json.dumps(record).replace('{"fault"', '\n{"fault"')
    (arguments.out / "faults.json").write_text(text + "\n", encoding="utf-8")
    print(lines)
    print(json.dumps({key: sum(row[key] for row in found) for key in ("injected", "survived")}))
    return 0 if all(row["survived"] == row["injected"] for row in found) else 1


def inject_all(arguments: Arguments, injections: list[dict[str, Any]]) -> None:
    """Round after round, every fault once in each."""
    work = arguments.out / "work"
    (work / "bench").mkdir(parents=True)
    bench = Bench((work / "bench").resolve())
    began, number = time.monotonic(), 0
    while number == 0 or (
        time.monotonic() - began < 60 * arguments.minutes
        if arguments.minutes
        else number < arguments.rounds
    ):
        for name, fault in arguments.chosen.items():
            injections.append(inject(name, fault, arguments.seed + number, bench, work))
        number += 1


def inject(name: str, fault: Fault, seed: int, bench: Bench, work: Path) -> dict[str, Any]:
    """One fault, in an empty folder; what did not hold afterwards is in `problem`.

    The samples that were lost are None where the job came to no end at which to count them.
    """
    folder = (work / "fault").resolve()
    folder.mkdir()
    begun = time.monotonic()
    problem, skipped, outcome = "", "", Outcome()
    lost: int | None = None
    try:
        outcome = fault(bench, random.Random(f"{name}/{seed}"), folder)
        lost = outcome.lost
    except SkippedError as reason:
        skipped = str(reason)
    except WrongRunError as error:
        problem, lost = str(error), error.lost
    except Exception as error:  # whatever it is, the record goes on
        problem = f"{type(error).__name__}: {error}"
    shutil.rmtree(folder)
    what = problem or skipped or outcome.said or "went on"
    print(f"{name}, seed {seed}, {time.monotonic() - begun:.0f} s: {what[:2000]}", file=sys.stderr)
    return {
        "fault": name,
        "seed": seed,
        "skipped": skipped,
        "problem": problem,
        "times": outcome.times,
        "said": outcome.said,
        "ended_s": outcome.ended_s,
        "back_s": outcome.back_s,
        "lost": lost,
        "replaced": outcome.replaced,
    }


if __name__ == "__main__":
    if not ROOT.samefile(Path.cwd()):
        sys.exit(f"error: run this in {ROOT}")
    sys.exit(main())
