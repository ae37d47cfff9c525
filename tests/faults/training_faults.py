"""Faults under one training process: ends of every kind, disks, memory, clocks."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.bench import (
    LIMIT_S,
    NUM_STEPS,
    Bench,
    check_checkpoints,
    check_same_run,
    last_step,
)
from tests.faults.outcome import Outcome, SkippedError, line_with
from tests.faults.processes import Job, running

_ENDED_S = 30.0
"""A run that is asked to end, or cannot go on, is gone after so long."""
_TAKEN = 1 << 25
"""Bytes of its address space that a process short of memory loses."""
_CHECKPOINT_MB = 40
"""A checkpoint of the bench's model, at least."""
_JUMPING_CLOCK = """
import itertools, time
_real, _jumps = time.time, itertools.cycle((0.0, 86400.0, -86400.0, 3e9))
time.time = lambda: _real() + next(_jumps)
"""


def killed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGKILL at any moment, a few times; the result is that of an undisturbed run."""
    run_dir = folder / "run"
    command = bench.training(run_dir)
    times, step_s = choose.randint(1, 3), bench.run_seconds / NUM_STEPS
    for _ in range(times):
        with running(command) as job:
            wait_for_moment(job, run_dir, choose, step_s)
            job.kill()
        check_checkpoints(run_dir)
    return replace(go_on(command, run_dir, bench), times=times)


def killed_in_checkpoint(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGKILL while a checkpoint is written, from its first file to its rename."""
    run_dir = folder / "run"
    command = bench.training(run_dir, "--save-every", 1)
    with running(command) as job:
        later = choose.randrange(1, NUM_STEPS // 2)
        job.wait_for(lambda: last_step(run_dir) >= later, LIMIT_S)
        partial = run_dir / "checkpoints"
        job.wait_for(lambda: any(partial.glob(".partial_*")), LIMIT_S)
        time.sleep(choose.uniform(0, 0.05))
        job.kill()
    check_checkpoints(run_dir)
    return go_on(command, run_dir, bench)


def killed_in_evaluation(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGKILL behind the last step: the evaluation is done again, nothing is trained again."""
    run_dir = folder / "run"
    command = bench.training(run_dir, "--evaluation.retrieval", bench.index)
    with running(command) as job:
        last = run_dir / "checkpoints" / f"step_{NUM_STEPS:09d}"
        job.wait_for(last.exists, LIMIT_S)
        time.sleep(choose.uniform(0, 0.5))
        job.kill()
    return go_on(command, run_dir, bench)


def asked_to_end(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGTERM or SIGINT behind some step: the run saves, says so, and goes on later."""
    run_dir = folder / "run"
    command = bench.training(run_dir)
    signum = choose.choice([signal.SIGTERM, signal.SIGINT])
    with running(command) as job:
        step = choose.randrange(1, NUM_STEPS // 2)
        job.wait_for(lambda: last_step(run_dir) >= step, LIMIT_S)
        start = time.monotonic()
        job.process.send_signal(signum)
        status = job.wait(_ENDED_S)
        ended_s = time.monotonic() - start
        assert status == 128 + signum, f"status {status}"
        said = line_with(job.output, "stopped by", "same command goes on")
    return go_on(command, run_dir, bench, said=said, ended_s=ended_s)


def decoder_crashed(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """SIGSEGV, which is how a decoder written in C crashes."""
    run_dir = folder / "run"
    command = bench.training(run_dir)
    with running(command) as job:
        step = choose.randrange(1, NUM_STEPS // 2)
        job.wait_for(lambda: last_step(run_dir) >= step, LIMIT_S)
        start = time.monotonic()
        job.process.send_signal(signal.SIGSEGV)
        status = job.wait(_ENDED_S)
        ended_s = time.monotonic() - start
        assert status == -signal.SIGSEGV, f"status {status}"
    return go_on(command, run_dir, bench, ended_s=ended_s)


def out_of_memory(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """The address space ends in the middle of the run: some thread's next buffer is refused.

    A run that finds all it needs in what it holds goes on to its end.
    """
    run_dir = folder / "run"
    command = bench.training(run_dir)
    with running(command) as job:
        step = choose.randrange(1, NUM_STEPS // 3)
        job.wait_for(lambda: last_step(run_dir) >= step, LIMIT_S)
        pid = job.process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() - _TAKEN
        start = time.monotonic()
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        status = job.wait(LIMIT_S)
        ended_s = time.monotonic() - start
        if status == 0:
            check_same_run(run_dir, bench.run)
            return Outcome()
        assert status == 1, f"status {status}:\n{job.output[-3000:]}"
        said = line_with(job.output, "failed", "memory")
    check_checkpoints(run_dir)
    return go_on(command, run_dir, bench, said=said, ended_s=ended_s)


def clock_jumps(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """The wall clock jumps by days and decades at every look: only the log's times notice."""
    del choose
    (folder / "sitecustomize.py").write_text(_JUMPING_CLOCK, encoding="utf-8")
    command = bench.training(folder / "run")
    with running(command, environment={"PYTHONPATH": str(folder)}) as job:
        status = job.wait(LIMIT_S)
        assert status == 0, job.output[-3000:]
    return Outcome(lost=check_same_run(folder / "run", bench.run))


def disk_full(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """A tmpfs too small for the run's checkpoints; with more room the run goes on."""
    # Three checkpoints are kept, and a fourth is there while it is written.
    with small_disk(folder / "disk", megabytes=choose.randrange(9, 3 * _CHECKPOINT_MB)) as disk:
        run_dir = disk / "run"
        command = bench.training(run_dir)
        with running(command) as job:
            status = job.wait(LIMIT_S)
            assert status == 1, f"status {status}:\n{job.output[-3000:]}"
            said = line_with(job.output, "disk is full")
            ended_s = 0.0
        check_checkpoints(run_dir)
        assert not list((run_dir / "checkpoints").glob(".*")), "a half-written checkpoint is left"
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        return go_on(command, run_dir, bench, said=said, ended_s=ended_s)


def read_only(bench: Bench, choose: random.Random, folder: Path) -> Outcome:
    """The run folder lies where nothing can be written."""
    del choose
    with small_disk(folder / "disk", megabytes=1024) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        run_dir = disk / "run"
        command = bench.training(run_dir)
        with running(command) as job:
            status = job.wait(LIMIT_S)
            assert status == 2, f"status {status}:\n{job.output[-3000:]}"
            said = line_with(job.output, "cannot be written", "--run-dir")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        return go_on(command, run_dir, bench, said=said)


def wait_for_moment(job: Job, run_dir: Path, choose: random.Random, step_s: float) -> None:
    """Any moment of a run: in its start one time in four, else behind some further step."""
    if choose.random() < 0.25:
        time.sleep(choose.uniform(0, 5))
        return
    done = last_step(run_dir)
    step = min(NUM_STEPS - 6, done + choose.randrange(1, NUM_STEPS // 3))
    job.wait_for(lambda: last_step(run_dir) >= step, LIMIT_S)
    time.sleep(choose.uniform(0, 2 * step_s))


def go_on(
    command: list[object], run_dir: Path, bench: Bench, *, said: str = "", ended_s: float = 0.0
) -> Outcome:
    """Start the run again, and hold its end to that of the undisturbed one."""
    before = last_step(run_dir)
    with running(command) as job:
        ended = run_dir / "evaluation.json"
        job.wait_for(lambda: last_step(run_dir) > before or ended.exists(), LIMIT_S)
        back_s = job.seconds
        status = job.wait(LIMIT_S)
        assert status == 0, f"the next start ended with {status}:\n{job.output[-3000:]}"
        assert not job.orphans(), "processes outlive the job"
    lost = check_same_run(run_dir, bench.run)
    return Outcome(said=said, ended_s=ended_s, back_s=back_s, lost=lost)


@contextmanager
def small_disk(place: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system of its own.

    Raises:
        SkippedError: this process may not mount one.
    """
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(words, capture_output=True, check=False).returncode
    ):
        raise SkippedError("mounting a small file system takes rights that this process lacks")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


FAULTS = {
    "SIGKILL of training": killed,
    "SIGKILL while a checkpoint is written": killed_in_checkpoint,
    "SIGKILL in the evaluation": killed_in_evaluation,
    "SIGTERM or SIGINT in training": asked_to_end,
    "crash of the decoder (SIGSEGV)": decoder_crashed,
    "out of memory in training": out_of_memory,
    "jumps of the wall clock": clock_jumps,
    "disk full under training": disk_full,
    "read-only run folder": read_only,
}
