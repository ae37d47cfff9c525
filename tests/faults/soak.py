"""Does a run that lasts hours, and is killed again and again, leak anything?

    python -m tests.faults.soak --minutes 120 --out SOAK

A small model trains on the demo's miniature pictures, by turns on one rank and on two. Half of the
time it is ended at random moments, by SIGKILL to all its processes, SIGTERM or SIGINT, and started
again by the same command; in the other half it is left alone. Once a minute its memory, threads,
file descriptors, shared memory and temporary files are counted. At the end the order of all samples
is held to what it should be. Prints a table and, last, one JSON line; the folder gets the record
(soak.json), its words (soak.md) and a picture (soak.png).

/dev/shm belongs to all programs of a machine: `unshare --mount` with a tmpfs mounted there keeps
those of others out of the count. Exit status: 0 nothing leaks, 1 something does, 2 wrong use.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro

from tessera.training.environment import machine
from tessera.training.sample_ids import read_sample_ids
from tests.faults.processes import ROOT, Job, Usage
from tests.faults.soak_report import write_report

_BATCH = 32
_ENDLESS = 10**9
_SHM = Path("/dev/shm")
_ENDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_LEAST_MINUTES = 60
"""Less says nothing about leaks."""
_LIFE_MINUTES = (2.0, 12.0)
_START_S = 300.0
_END_S = 120.0
_WRITTEN_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train for hours, disturbed."""

    out: Path
    """Folder of the record and of the run; must not exist."""
    minutes: float = 120.0
    """How long, in minutes."""
    seed: int = 1
    """Of when the run is ended, how, and on how many ranks it starts again."""
    every_s: float = 60.0
    """Seconds between two counts."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks that starts draw from."""

    def __post_init__(self) -> None:
        if self.minutes < _LEAST_MINUTES or self.every_s <= 0:
            raise ValueError(f"--minutes must be {_LEAST_MINUTES} or more, and --every-s above 0")
        if self.out.exists():
            raise ValueError(f"{self.out} exists: name another folder with --out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """One count."""

    minute: float
    """Since the soak began."""
    life: int
    """Number of the start, from 0."""
    age_min: float
    """Minutes since that start."""
    step: int
    """Steps done."""
    usage: Usage
    """Of the processes."""
    num_shm: int
    """Files in shared memory."""
    num_temporary: int
    """Files in the folder for temporary files."""


@dataclass(kw_only=True, slots=True)
class Life:
    """From one start to its end."""

    number: int
    """From 0."""
    num_ranks: int
    """Processes that train."""
    end: str = ""
    """How it was ended."""
    status: int = 0
    """Exit status of the first process; a signal's number below 0."""
    first_step: int = 0
    """Steps that the run had done, as far as its log says, when it was started."""
    last_step: int = 0
    """The same when it ended."""
    back_s: float = math.nan
    """Seconds from the start until the run was further than before."""
    orphans: int = 0
    """Processes left ten seconds after the end."""
    shm_left: int = 0
    """Files left in shared memory."""
    temporary_left: int = 0
    """Files left in the folder for temporary files."""
    partial_left: list[str] = field(default_factory=list)
    """Half-written files that the next start found and did not remove."""


class Soak:
    """One soak while it lasts."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.choose = random.Random(arguments.seed)
        self.run_dir = arguments.out / "run"
        self.temporary = arguments.out / "tmp"
        self.temporary.mkdir(parents=True)
        self.began = time.monotonic()
        self.shm_before = _num_files(_SHM)
        self.counts: list[Count] = []
        self.lives: list[Life] = []

    @property
    def minute(self) -> float:
        """Minutes since the soak began."""
        return (time.monotonic() - self.began) / 60

    def go_on(self) -> None:
        """Disturbed for half of the time, then one life to the end."""
        end = self.arguments.minutes
        while self.minute + _LIFE_MINUTES[0] < end / 2:
            length = math.exp(self.choose.uniform(*map(math.log, _LIFE_MINUTES)))
            self.live(min(self.minute + length, end / 2), self.choose.choice(_ENDS))
        self.live(end, signal.SIGTERM, num_ranks=self.arguments.ranks[0])

    def live(self, until: float, end: signal.Signals, num_ranks: int = 0) -> None:
        """Start the run, count until a minute of the soak, and end it."""
        num_ranks = num_ranks or self.choose.choice(self.arguments.ranks)
        life = Life(number=len(self.lives), num_ranks=num_ranks, first_step=last_step(self.run_dir))
        self.lives.append(life)
        _say(f"minute {self.minute:.1f}: start {life.number} on {num_ranks} ranks")
        job = Job(training(self.run_dir, num_ranks), environment={"TMPDIR": str(self.temporary)})
        try:
            if not job.wait_for(lambda: last_step(self.run_dir) > life.first_step, _START_S):
                raise RuntimeError(f"start {life.number} got nowhere:\n{job.output[-4000:]}")
            life.back_s = job.seconds
            life.partial_left = [path.name for path in self.run_dir.rglob(".*partial*")]
            while self.minute < until and job.process.poll() is None:
                self.counts.append(self.count(life, job))
                time.sleep(min(self.arguments.every_s, max(0.0, until - self.minute) * 60))
            self.finish(life, job, end)
        finally:
            job.close()

    def count(self, life: Life, job: Job) -> Count:
        """What is held now; between checkpoints, as one being written holds a copy of the model."""
        job.wait_for(lambda: not self.is_writing(), _WRITTEN_S)
        return Count(
            minute=self.minute,
            life=life.number,
            age_min=job.seconds / 60,
            step=last_step(self.run_dir),
            usage=job.usage(),
            num_shm=_num_files(_SHM) - self.shm_before,
            num_temporary=_num_files(self.temporary),
        )

    def is_writing(self) -> bool:
        """Whether a checkpoint is half written."""
        return any((self.run_dir / "checkpoints").glob(".partial_*"))

    def finish(self, life: Life, job: Job, end: signal.Signals) -> None:
        """End a life and count what is left of it."""
        life.end = end.name
        if job.process.poll() is not None:
            life.end = "by itself"
            _say(job.output[-4000:])
        elif end == signal.SIGKILL:
            job.kill()
        else:
            job.process.send_signal(end)
        life.status = job.wait(_END_S)
        life.orphans = len(job.orphans())
        life.last_step = last_step(self.run_dir)
        life.shm_left = _num_files(_SHM) - self.shm_before
        life.temporary_left = _num_files(self.temporary)
        _say(f"minute {self.minute:.1f}: {life.end}, status {life.status}, step {life.last_step}")

    def order(self) -> dict[str, int]:
        """Holds the samples of all steps to an order in which every one comes once a pass."""
        steps = read_sample_ids(self.run_dir / "sample_ids.jsonl")
        served = [id_ for step in sorted(steps) for id_ in steps[step]]
        num_samples = max(served) + 1
        passes = [served[n : n + num_samples] for n in range(0, len(served), num_samples)]
        whole = [each for each in passes if len(each) == num_samples]
        return {
            "num_steps": len(steps),
            "missing_steps": max(steps) - len(steps),
            "num_passes": len(whole),
            "lost": sum(num_samples - len(set(each)) for each in whole),
            "twice": sum(len(each) - len(set(each)) for each in passes),
        }


def training(run_dir: Path, num_ranks: int) -> list[object]:
    """The command, the same for every start but for the ranks."""
    starter = [sys.executable]
    if num_ranks > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    fixed = {
        "--run-dir": run_dir.resolve(),
        "--total-samples": _BATCH * _ENDLESS,
        "--batch-size": _BATCH,
        "--num-threads": 1,
        "--data.num-threads": 1,
        "--save-every": 50,
        "--log-every": 10,
    }
    words = [word for pair in fixed.items() for word in pair]
    none = ["--evaluation.retrieval", "--evaluation.zero-shot", "--log-sample-ids"]
    return [*starter, "train.py", "demo", "--mini", *words, *none]


def last_step(run_dir: Path) -> int:
    """The last step that metrics.jsonl holds as a whole line; 0 without one."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().rpartition(b"\n")[0].splitlines()
    return json.loads(lines[-1])["step"] if lines else 0


def main() -> int:
    """Run the soak; returns the exit status."""
    try:
        arguments = tyro.cli(Arguments, description=__doc__)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    soak = Soak(arguments)
    try:
        soak.go_on()
    except (RuntimeError, TimeoutError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    record = {
        "command": f"python -m tests.faults.soak --minutes {arguments.minutes:g} --seed "
        f"{arguments.seed} --out {arguments.out.name}",
        "environment": machine(torch.device("cpu")),
        "arguments": asdict(arguments) | {"out": arguments.out.name},
        "lives": [asdict(life) for life in soak.lives],
        "counts": [asdict(count) for count in soak.counts],
        "order": soak.order(),
    }
    verdict = write_report(record, arguments.out)
    shutil.rmtree(soak.temporary)
    print((arguments.out / "soak.md").read_text(encoding="utf-8"))
    print(json.dumps(verdict))
    return 0 if verdict["passed"] else 1


def _num_files(folder: Path) -> int:
    return sum(not path.is_dir() for path in folder.rglob("*"))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if not ROOT.samefile(Path.cwd()):
        sys.exit(f"error: run this in {ROOT}")
    sys.exit(main())
