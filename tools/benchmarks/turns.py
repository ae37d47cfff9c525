"""Times sides in turn, each in a process of its own, so that memory and CPU time are its own.

What a side makes ahead while another has its turn is taken away before its clock starts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

import psutil
import torch

from tessera.tools.benchmarks.side import Side, UnavailableError

_START_S = 120.0
_TURN_S = 600.0
_END_S = 10.0


class SideSetting(Protocol):
    """What a side's process needs to know of its setting; a frozen dataclass of plain values."""

    @property
    def num_workers(self) -> int:
        """Threads that torch may use."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """A side and how its process is set up."""

    build: Callable[[Any], Side]
    """Makes the side of `setting`; a function or class of a module."""
    setting: SideSetting
    """What it is made with."""
    one_core: bool = False
    """The process keeps to one core, all one-core sides to the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of one side."""

    num_images: int
    """Images made."""
    seconds: float
    """Wall clock."""
    cpu_s: float
    """CPU time of the process and its children, all cores together."""
    memory_bytes: int
    """Memory of the process and its children at the end, shared pages by share."""
    known: dict[str, Any]
    """What only the side could tell."""


@dataclass(kw_only=True, slots=True)
class Results:
    """All turns, and what could not take part."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    """By side, in order."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reason by side."""

    def rates(self, name: str) -> list[float]:
        """Images a second of every turn; empty for a side that was left out."""
        return [turn.num_images / turn.seconds for turn in self.turns.get(name, ())]

    def summary(self, name: str) -> dict[str, Any]:
        """Medians of a side over its turns."""
        turns = self.turns[name]
        return {
            "images_per_s": spread(self.rates(name)),
            "cpu_ms_per_image": spread([1e3 * turn.cpu_s / turn.num_images for turn in turns]),
            "memory_bytes": max(turn.memory_bytes for turn in turns),
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def take_turns(
    entrants: Mapping[str, Entrant],
    *,
    num_batches: int,
    repeats: int,
    progress: Callable[[str], object] = lambda _text: None,
) -> Results:
    """Time every side `repeats` times, in turn, every other round backwards.

    A first round warms up and is not counted.

    Args:
        entrants: by name.
        num_batches: of one turn.
        repeats: counted rounds.
        progress: told what happens.
    """
    results = Results()
    running: dict[str, _Process] = {}
    try:
        # One after the other: a side's first batch needs the cores and the memory to itself.
        for name, entrant in entrants.items():
            progress(f"starting {name}")
            running[name] = _Process(entrant)
            _attempt(results, running, name, running[name].wait_until_ready)
        for repeat in range(repeats + 1):
            names = list(running)
            for name in names if repeat % 2 else reversed(names):
                progress(f"round {repeat} of {repeats}: {name}")
                turn = _attempt(
                    results, running, name, lambda name=name: running[name].turn(num_batches)
                )
                if repeat and turn is not None:
                    results.turns.setdefault(name, []).append(turn)
    finally:
        for process in running.values():
            process.close()
    return results


def _attempt(
    results: Results,
    running: dict[str, _Process],
    name: str,
    action: Callable[[], Any],
) -> Any:
    """Let a side act; one that fails is left out from then on, with its reason."""
    try:
        return action()
    except UnavailableError as error:
        results.left_out[name] = str(error)
        results.turns.pop(name, None)
        running.pop(name).close()
        return None


class _Process:
    """A side behind a pipe."""

    def __init__(self, entrant: Entrant) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        core = min(os.sched_getaffinity(0)) if entrant.one_core else None
        self._process = context.Process(target=_serve, args=(theirs, entrant, core))
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        self._receive(_START_S)

    def turn(self, num_batches: int) -> Turn:
        self._pipe.send(num_batches)
        return self._receive(_TURN_S)

    def close(self) -> None:
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._process.join(_END_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _receive(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                raise UnavailableError(f"it did not answer for {seconds:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_END_S)
            raise UnavailableError(f"its process died ({self._process.exitcode})") from None
        if isinstance(answer, str):
            raise UnavailableError(answer)
        return answer


def _serve(pipe: Connection, entrant: Entrant, core: int | None) -> None:
    """In the side's process: take turns until told to end."""
    if core is not None:
        # Before anything starts a thread, which would keep to the old cores.
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1 if core is not None else entrant.setting.num_workers)
    try:
        side = entrant.build(entrant.setting)
        side.run(1)
        pipe.send(None)
        while (num_batches := pipe.recv()) is not None:
            pipe.send(_timed(side, num_batches))
        side.close()
    except UnavailableError as error:
        pipe.send(str(error))
    except EOFError:
        return
    except Exception as error:
        # Whatever goes wrong in somebody else's loader must not end the run of the others.
        last = (str(error).strip().splitlines() or ["no message"])[-1]
        pipe.send(f"{type(error).__name__}: {last}")
        print(f"{entrant.build.__name__}: {error}", file=sys.stderr)


def _timed(side: Side, num_batches: int) -> Turn:
    if side.ahead:
        side.run(side.ahead)
    cpu_before, start = _cpu_s(), time.perf_counter()
    work = side.run(num_batches)
    turn = Turn(
        num_images=work.num_images,
        seconds=time.perf_counter() - start,
        cpu_s=_cpu_s() - cpu_before,
        memory_bytes=_memory_bytes(),
        known=work.known,
    )
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the next side needs what torch would keep
    return turn


def _tree() -> list[psutil.Process]:
    """This process and its descendants."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_s() -> float:
    seconds = 0.0
    for process in _tree():
        with contextlib.suppress(psutil.Error):  # a worker may end meanwhile
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _memory_bytes() -> int:
    total = 0
    for process in _tree():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total
