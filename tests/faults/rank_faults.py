"""One rank of four is lost or hangs, or torchrun itself is ended."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults.bench import (
    LIMIT_S,
    NUM_STEPS,
    Bench,
    check_checkpoints,
    check_nothing_left,
    check_order,
    counted,
    last_step,
    losses,
)
from tests.faults.outcome import Outcome, line_with
from tests.faults.processes import running, send

_NUM_RANKS = 4
_TIMEOUT_S = 10
"""How long ranks wait for each other."""
_TORCHRUN_S = 30.0
"""So long torchrun itself waits for ranks that it asked to end."""
_ENDED_S = _TIMEOUT_S + _TORCHRUN_S + 20


def rank_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGKILL to one of four ranks."""
    return _disturbed(bench, choose, folder, signal.SIGKILL, "exitcode", "-9")


def rank_stalled(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGSTOP to one of four ranks: the others tell which one is behind."""
    return _disturbed(
        bench, choose, folder, signal.SIGSTOP, "cannot go on", "no sign of life from rank"
    )


def torchrun_ended(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGTERM to torchrun, as a scheduler sends it: the ranks save and end."""
    return _disturbed(bench, choose, folder, signal.SIGTERM, "same command goes on", starter=True)


def torchrun_killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGKILL to torchrun alone: the ranks notice and end by themselves."""
    return _disturbed(bench, choose, folder, signal.SIGKILL, "cannot go on", starter=True)


def _disturbed(
    bench: Bench,
    choose: random.Random,
    folder: Path,
    signum: signal.Signals,
    *words: str,
    starter: bool = False,
) -> Outcome:
    """Signal torchrun or one rank behind some step, wait for the end, and go on with two ranks."""
    run_dir = folder / "run"
    step, victim = choose.randrange(1, NUM_STEPS // 2), choose.randrange(_NUM_RANKS)
    with running(_torchrun(bench, run_dir, _NUM_RANKS)) as job:
        job.wait_for(lambda: last_step(run_dir) >= step, LIMIT_S)
        start = time.monotonic()
        send(job.process.pid if starter else job.ranks()[victim], signum)
        status = job.wait(_ENDED_S)
        left = job.orphans(_ENDED_S)
        ended_s = time.monotonic() - start
        assert not left, f"{len(left)} processes outlive torchrun"
        assert status, "an end that nobody wished for has status 0"
        said = _said(job.output, words)
    check_checkpoints(run_dir)
    return _go_on(bench, run_dir, said, ended_s)


def _said(output: str, words: tuple[str, ...]) -> str:
    """The line that names the cause; torchrun adds tracebacks of its own to a rank's."""
    own = [line for line in output.splitlines() if "Traceback" not in line]
    return line_with("\n".join(own), *words)


def _go_on(bench: Bench, run_dir: Path, said: str, ended_s: float) -> Outcome:
    before = last_step(run_dir)
    with running(_torchrun(bench, run_dir, 2)) as job:
        ended = run_dir / "evaluation.json"
        job.wait_for(lambda: last_step(run_dir) > before or ended.exists(), LIMIT_S)
        back_s = job.seconds
        assert job.wait(LIMIT_S) == 0, job.output[-3000:]
        assert not job.orphans(), "processes outlive the job"
    # Another number of ranks rounds otherwise, and no more than that.
    with counted(run_dir):
        assert losses(run_dir) == pytest.approx(losses(bench.run), abs=1e-3), "other losses"
        check_nothing_left(run_dir)
    return Outcome(said=said, ended_s=ended_s, back_s=back_s, lost=check_order(run_dir, bench.run))


def _torchrun(bench: Bench, run_dir: Path, num_ranks: int) -> list[object]:
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    own = bench.training(run_dir, "--distributed.timeout-s", _TIMEOUT_S)[1:]
    return [*starter, f"--nproc-per-node={num_ranks}", *own]


FAULTS = {
    "SIGKILL of one rank of four": rank_killed,
    "one rank of four stalled (SIGSTOP)": rank_stalled,
    "SIGTERM to torchrun, four ranks": torchrun_ended,
    "SIGKILL of torchrun alone, four ranks": torchrun_killed,
}
