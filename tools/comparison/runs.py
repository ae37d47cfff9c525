"""Makes the runs, each an ordinary `python train.py` in a folder of its own, and reads them back.

Shape legend: L points of a curve.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.report.series import trend
from tessera.tools.comparison.plan import PlannedRun, flops_of
from tessera.tools.comparison.scores import Figure, figures_of
from tessera.training.config import to_json
from tessera.training.config_differences import differences
from tessera.training.metrics import read_records
from tessera.training.run_folder import RunFolder

_ROOT = Path(__file__).resolve().parents[2]
_POINTS = 120

Floats: TypeAlias = NDArray[np.float64]


LOSS = "training loss"
"""Name of its curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """How a figure went during a run."""

    samples: Floats
    """[L] pairs seen."""
    flops: Floats
    """[L] operations done."""
    seconds: Floats
    """[L] time in steps."""
    values: Floats
    """[L] the figure; NaN where it was not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """A run and what it gave."""

    run: PlannedRun
    """As it was planned."""
    scores: dict[str, Figure]
    """By name, such as "top-1"."""
    seconds: float
    """Time in steps, waiting for data included; without start, evaluation and report."""
    curves: dict[str, Curve]
    """Of the training loss, smoothed, and of main scores that were measured on the way."""


def is_finished(run: PlannedRun) -> bool:
    """Whether the run lies in its folder, evaluated, with just this configuration.

    Raises:
        ValueError: the folder holds a run with another configuration.
    """
    folder = RunFolder(run.folder)
    if not folder.config.is_file():
        return False
    changed = differences(json.loads(folder.config.read_text("utf-8")), to_json(run.config))
    if changed:
        raise ValueError(
            f"{run.folder} holds a run with another configuration; give this comparison another "
            "--out, or remove that folder:\n  " + "\n  ".join(changed)
        )
    return folder.evaluation.is_file()


def make_runs(
    runs: Sequence[PlannedRun], jobs: int, say: Callable[[str], object]
) -> dict[Path, str]:
    """Make the runs that are not finished; a run that was stopped goes on where it was.

    Args:
        runs: in order.
        jobs: how many at once.
        say: told what begins and ends.

    Returns:
        Why a run failed, by its folder; empty if all are finished.

    Raises:
        KeyboardInterrupt: after the runs under way have been stopped.
    """
    waiting = [run for run in runs if not is_finished(run)]
    say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before")
    failures: dict[Path, str] = {}
    under_way: set[subprocess.Popen[bytes]] = set()
    pool = ThreadPoolExecutor(jobs)
    try:
        with _interrupted_by_any_signal():
            reasons = pool.map(lambda run: _make(run, under_way), waiting)
            for number, (run, reason) in enumerate(zip(waiting, reasons, strict=True), 1):
                say(f"[{number}/{len(waiting)}] {run.folder.name}: {reason or 'finished'}")
                if reason:
                    failures[run.folder] = reason
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(under_way):
            process.terminate()
        raise
    finally:
        pool.shutdown()
    return failures


def read_run(run: PlannedRun) -> FinishedRun:
    """Read what a finished run left."""
    folder = RunFolder(run.folder)
    records = read_records(folder.metrics)
    samples, loss, step_s = (
        np.array([getattr(record, name) for record in records], dtype=np.float64)
        for name in ("samples", "loss", "step_s")
    )
    seconds = np.cumsum(step_s)

    def curve(at: Floats, values: Floats) -> Curve:
        return Curve(
            samples=at,
            flops=_flops_at(run, at),
            seconds=np.interp(at, samples, seconds),
            values=values,
        )

    at_loss = trend(samples, loss, most=_POINTS)
    on_the_way = {name: curve(*points) for name, points in _scores_on_the_way(folder).items()}
    return FinishedRun(
        run=run,
        scores=figures_of(json.loads(folder.evaluation.read_text("utf-8"))),
        seconds=float(step_s.sum()),
        curves={LOSS: curve(*at_loss), **on_the_way},
    )


def _scores_on_the_way(folder: RunFolder) -> dict[str, tuple[Floats, Floats]]:
    """(pairs seen, values) of the main scores of a run that was evaluated more than once."""
    if not folder.evaluations.is_file():
        return {}
    lines = folder.evaluations.read_text("utf-8").splitlines()
    times = [(each["samples"], figures_of(each)) for each in map(json.loads, lines)]
    if len(times) < 2:
        return {}
    samples = np.array([seen for seen, _ in times], dtype=np.float64)
    return {
        name: (samples, np.array([scores[name].value for _, scores in times]))
        for name, score in times[0][1].items()
        if score.is_main
    }


@contextmanager
def _interrupted_by_any_signal() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does, where nobody handles them."""
    chosen = [
        each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL
    ]
    for each in chosen:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each in chosen:
            signal.signal(each, signal.SIG_DFL)


def _make(run: PlannedRun, under_way: set[subprocess.Popen[bytes]]) -> str:
    """Make one run; the reason why it failed, or ""."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(_ROOT / "train.py"), *run.words],
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches the terminal's whole group, and of a second signal, that of
            # `make_runs`, a run ends at once, without a checkpoint.
            start_new_session=True,
        )
        under_way.add(process)
        status = process.wait()
        under_way.discard(process)
    if status == 0:
        return ""
    lines = Path(output.name).read_text("utf-8", "replace").split("\n")
    said = [line for line in lines if line.startswith(("error: ", "failed: "))]
    return f"exit status {status}, {said[-1] if said else f'see {output.name}'}"


def _flops_at(run: PlannedRun, samples: Floats) -> Floats:
    """Operations done when so many pairs [L] were seen."""
    stages = flops_of(run.config)
    pairs = np.cumsum([0, *(each for each, _ in stages)])
    flops = np.cumsum([0.0, *(each * cost for each, cost in stages)])
    return np.interp(samples, pairs, flops)
