"""Feeds damaged files to one parser in processes of its own, within limits of memory and time.

A parser may accept a file, or refuse it with one of the errors that its callers expect. Any other
error counts as a crash, as does a signal, memory beyond the limit, or time beyond the limit.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

from tests.hostile.mutate import Repair, mutated

_MIB = 1 << 20
_NEXT, _ACCEPTED, _REFUSED, _SLOWEST_S, _SLOWEST, _PEAK_MIB = range(6)
_MAX_CRASHES = 20
_NOT_PREPARED = 77


@dataclass(frozen=True, kw_only=True, slots=True)
class Parser:
    """One way in."""

    name: str
    """In the table."""
    files: Callable[[Path], Sequence[bytes]]
    """Sound files, made in a folder of the parser's own; damage starts from them."""
    open: Callable[[Path], Callable[[bytes], object]]
    """Prepares what takes one file; called after `files`, with the same folder."""
    refusals: tuple[type[Exception], ...]
    """How it says no."""
    divisor: int = 5
    """It gets this part of the inputs that are asked for."""
    repair: Repair | None = None
    """Makes checksums right again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one input may take."""

    seconds: float = 10.0
    """Wall time."""
    memory_mib: int = 3072
    """Address space on top of what the prepared process has."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of the inputs of one parser."""

    parser: str
    """Its name."""
    num_inputs: int = 0
    """Damaged files that it was given."""
    accepted: int = 0
    """Files that it read: the damage left them readable."""
    refused: int = 0
    """Files that it refused with an error that its callers expect."""
    crashes: list[dict[str, Any]] = field(default_factory=list)
    """`number` of the input and `what` happened."""
    slowest_s: float = 0.0
    """Longest time of one input, in seconds."""
    slowest_input: int = 0
    """Its number."""
    peak_mib: float = 0.0
    """Largest growth of resident memory over the prepared process, in MiB."""


def run_parser(parser: Parser, num_inputs: int, seed: int, limits: Limits) -> Outcome:
    """Feed inputs 0 .. num_inputs - 1; a process that dies is replaced behind the fatal input."""
    counts = RawArray("d", 6)
    outcome = Outcome(parser=parser.name, num_inputs=num_inputs)
    with tempfile.TemporaryDirectory() as made:
        log = Path(made) / "crashes.jsonl"
        log.touch()
        while counts[_NEXT] < num_inputs:
            folder = Path(made) / f"from-{int(counts[_NEXT])}"
            folder.mkdir()
            child = multiprocessing.get_context("fork").Process(
                target=_feed, args=(parser, num_inputs, seed, limits, counts, folder, log)
            )
            child.start()
            child.join()
            if child.exitcode == _NOT_PREPARED:
                raise RuntimeError(f"{parser.name}: {(folder / 'stderr').read_text('utf-8')}")
            if child.exitcode:
                number = int(counts[_NEXT])
                _note(log, number, _death(child.exitcode, folder / "stderr"))
                counts[_NEXT] = number + 1
            if len(log.read_text("utf-8").splitlines()) > _MAX_CRASHES:
                outcome.num_inputs = int(counts[_NEXT])
                break
        outcome.crashes = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    outcome.accepted, outcome.refused = int(counts[_ACCEPTED]), int(counts[_REFUSED])
    outcome.slowest_s, outcome.slowest_input = counts[_SLOWEST_S], int(counts[_SLOWEST])
    outcome.peak_mib = counts[_PEAK_MIB]
    return outcome


def _feed(
    parser: Parser,
    num_inputs: int,
    seed: int,
    limits: Limits,
    counts: Any,
    folder: Path,
    log: Path,
) -> None:
    """In the child: prepare, see that sound files are accepted, then feed the damaged ones."""
    warnings.simplefilter("ignore")
    with (folder / "stderr").open("w") as errors:
        os.dup2(errors.fileno(), 2)
        faulthandler.enable()
        # An alarm ends the process with a traceback, even from within C code that never returns.
        # faulthandler's own watchdog is a thread, which a fork of a process with one waits for.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)
        work = folder / "work"
        work.mkdir()
        try:
            files = parser.files(work)
            parse = parser.open(work)
            for data in files:
                parse(data)
        except BaseException:
            traceback.print_exc(file=errors)
            errors.flush()
            os._exit(_NOT_PREPARED)
        _limit_memory(limits.memory_mib)
        before = _status_kib("VmRSS")
        for number in range(int(counts[_NEXT]), num_inputs):
            counts[_NEXT] = number
            data = mutated(files, seed, number, parser.repair)
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)
            start = time.perf_counter()
            try:
                parse(data)
                counts[_ACCEPTED] += 1
            except parser.refusals:
                counts[_REFUSED] += 1
            except Exception:
                _note(log, number, traceback.format_exc()[-1500:])
            seconds = time.perf_counter() - start
            signal.setitimer(signal.ITIMER_REAL, 0)
            if seconds > counts[_SLOWEST_S]:
                counts[_SLOWEST_S], counts[_SLOWEST] = seconds, number
            counts[_PEAK_MIB] = max(counts[_PEAK_MIB], (_status_kib("VmHWM") - before) / 1024)
        counts[_NEXT] = num_inputs
    # What other threads of the libraries still do must not delay or change the end.
    os._exit(0)


def _limit_memory(mib: int) -> None:
    most = _status_kib("VmSize") * 1024 + mib * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"this system does not tell {name}")


def _note(log: Path, number: int, what: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"number": number, "what": what}) + "\n")


def _death(code: int, errors: Path) -> str:
    said = errors.read_text("utf-8", "replace")[-1500:] if errors.is_file() else ""
    return f"{'signal' if code < 0 else 'exit status'} {abs(code)}: {said}"
