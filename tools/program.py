"""The contract of all programs in this folder: how they end, and what they print.

Exit status: 0 done, 1 failed, 2 wrong use or missing data, 130 stopped by Ctrl-C, 143 by SIGTERM.
A person reads a summary; the JSON line for other programs comes last, with `--json` or where stdout
is no terminal. A closed pipe ends the output and not the work. Errors are one line on stderr.

A program imports this file before anything that takes long, so that Ctrl-C during its imports ends
it in one line, too.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import __main__
from tessera.pipeline.printable import message_of

DONE, FAILED, WRONG_USE = 0, 1, 2
_CONTRACT = """With --json, or where stdout is no terminal, one JSON line comes last. Exit status:
0 done, 1 failed, 2 wrong use or missing data, 130 or 143 stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A result with an exit status other than 0."""

    result: Mapping[str, Any]
    """The JSON line."""
    status: int
    """Exit status."""


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asked this process to end."""

    def __init__(self, number: int) -> None:
        """Remember the signal."""
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


def describe(doc: str | None) -> str:
    """A program's docstring with the contract, for its --help."""
    return f"{doc or ''}\n{_CONTRACT}"


def next_step(*words: object) -> str:
    """A line that names the command to run next, as a shell takes it."""
    return f"next       {shlex.join(['python', *map(str, words)])}"


def run(
    work: Callable[[list[str]], Mapping[str, Any] | Ended | None],
    argv: Sequence[str] | None = None,
    *,
    failures: tuple[type[Exception], ...] = (),
    stopped: str = "stopped",
    failed: str = "",
) -> int:
    """Do the work of a program.

    Args:
        work: is given the words of the command line without `--json`; returns the JSON line, None
            for none.
        argv: words of the command line; by default the process's own.
        failures: exceptions that mean failure, besides OSError, RuntimeError and MemoryError.
        stopped: message after Ctrl-C or SIGTERM.
        failed: what follows the message of a failure, such as what became of the output.

    Returns:
        The exit status.
    """
    words, as_json = _without_json(sys.argv[1:] if argv is None else argv)
    try:
        with _output_that_may_close(), _stopped_by_sigterm():
            found = work(words)
            ended = found if isinstance(found, Ended) else Ended(result=found or {}, status=DONE)
            if found is not None and (as_json or not sys.stdout.isatty()):
                print(json.dumps(ended.result))
            sys.stdout.flush()
            return ended.status
    except (ValueError, FileNotFoundError) as error:
        return _say(f"error: {message_of(error)}", WRONG_USE)
    except (OSError, RuntimeError, MemoryError, *failures) as error:
        return _say(f"failed: {message_of(error)}{f'; {failed}' if failed else ''}", FAILED)
    except KeyboardInterrupt as stop:
        return _say(stopped, getattr(stop, "exit_status", 128 + signal.SIGINT))


def _without_json(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words less `--json`; those after `--` are for another program."""
    end = words.index("--") if "--" in words else len(words)
    own = [word for word in words[:end] if word != "--json"]
    return [*own, *words[end:]], len(own) < end


def _say(text: str, status: int) -> int:
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _forget(sys.stderr)
    return status


class _MayClose:
    """A text stream that forgets what is written after its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _forget(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _forget(self._stream)


def _forget(stream: TextIO) -> None:
    """Send what is still written to a closed pipe, at the interpreter's end too, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def _output_that_may_close() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (each and _MayClose(each) for each in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM raises `Stopped`, where nobody else handles it; Ctrl-C raises as usual again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def stop(number: int, _frame: object) -> None:
        if os.getpid() == owner:
            raise Stopped(number)
        signal.signal(number, signal.SIG_DFL)  # a forked worker ends as ever
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_at_once(number: int, _frame: object) -> NoReturn:
    os.write(2, b"stopped\n")
    os._exit(128 + number)


def _is_run_as_a_program() -> bool:
    started = getattr(__main__, "__file__", None)
    return started is not None and Path(started).resolve().parent == Path(__file__).resolve().parent


if _is_run_as_a_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_at_once)
