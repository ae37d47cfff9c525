"""Compile small C sources once for this machine, and load them.

They are built with the system's C compiler when they are first used. The result lies in the user's
cache folder under a name that is a hash of sources, compiler, processor and libraries.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
_TIME_LIMIT_S = 120


class CompilationError(RuntimeError):
    """The code cannot be built here; the message says why and what would help."""


def load_library(sources: Sequence[Path], libraries: Sequence[Path] = ()) -> ctypes.CDLL:
    """Load a library, and compile it first where that was not yet done.

    Args:
        sources: a C file, and the headers that it includes.
        libraries: shared libraries that it is linked with, found at run time where they lie now.

    Raises:
        CompilationError: no compiler, an error in compiling, or no folder to write to.
    """
    compiler = find_compiler()
    name = f"{sources[0].stem}-{_key(compiler, sources, libraries)}.so"
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / name
        if not library.exists():
            _compile(compiler, sources[0], libraries, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"{error} (set XDG_CACHE_HOME to a folder to write to)") from error


def find_compiler() -> list[str]:
    """The command of the C compiler: $CC, or the first of cc, gcc and clang.

    Raises:
        CompilationError: there is none.
    """
    candidates = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise CompilationError(
        f"no C compiler: none of {', '.join(candidates)} is found (install gcc, or set CC)"
    )


def cache_folder() -> Path:
    """Where compiled code is kept: `tessera` in $XDG_CACHE_HOME, or in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tessera"


def _key(compiler: list[str], sources: Sequence[Path], libraries: Sequence[Path]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in libraries]
    parts = [
        *[path.read_bytes() for path in sources],
        repr((compiler, _FLAGS, platform.machine(), _processor(), states)).encode(),
        version,
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """Instructions of this processor: code that is built for one must not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: list[str], source: Path, libraries: Sequence[Path], library: Path) -> None:
    """Write under a name of this process, then rename: several ranks may start at once."""
    partial = library.with_suffix(f".partial-{os.getpid()}")
    command = [*compiler, *_FLAGS, str(source), *map(str, libraries)]
    command += [f"-Wl,-rpath,{path.parent}" for path in libraries]
    command += ["-lm", "-pthread", "-o", str(partial)]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIME_LIMIT_S
        )
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no message"]
            reason = next((line for line in lines if "error" in line), lines[-1])
            raise CompilationError(f"{compiler[0]} failed: {reason}")
        partial.replace(library)
    finally:
        partial.unlink(missing_ok=True)
