"""How fast is a large set indexed, in how much memory, and how fast does its index open?

    python tools/benchmark_index.py --samples 1000000

Draws shards of small JPEGs with captions of rare and frequent words in a temporary folder (some
6 KB a sample), indexes them with one worker and without full decode, indexes them again unchanged,
opens the index in a process of its own, and removes everything. Prints a table and, last, one JSON
line.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from tessera.pipeline.index import ScanOptions, build_index, open_index

_NUM_PICTURES = 64
_NUM_WORDS = 200_000
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Measure making and opening an index."""

    samples: int = 100_000
    """Samples to draw."""
    samples_per_shard: int = 10_000
    """Samples of a shard."""
    folder: Path | None = None
    """Where the temporary folder is made; the system's choice if not given."""
    full_decode: bool = False
    """Decode every image."""
    seed: int = 0
    """Of the captions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    if arguments.samples < 1 or arguments.samples_per_shard < 1:
        raise ValueError("--samples and --samples-per-shard must be at least 1")
    with tempfile.TemporaryDirectory(prefix="tessera-index-", dir=arguments.folder) as folder:
        result = measure(arguments, Path(folder))
    for name, value in result.items():
        print(f"{name:28} {value:,.2f}" if isinstance(value, float) else f"{name:28} {value}")
    return result


def measure(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Draw the shards, index them twice, open the index."""
    draw_shards(arguments, folder / "shards")
    shards = sorted((folder / "shards").glob("*.tar"))
    options = ScanOptions(full_decode=arguments.full_decode)
    out = folder / "index"
    first = _in_process(_build, shards, out, options)
    again = _in_process(_build, shards, out, options)
    opened = _in_process(_open, out)
    return {
        "num_samples": arguments.samples,
        "num_shards": len(shards),
        "full_decode": arguments.full_decode,
        "index_s": first["seconds"],
        "samples_per_s": arguments.samples / first["seconds"],
        "index_private_mib": first["private_mib"],
        "again_s": again["seconds"],
        "open_s": opened["seconds"],
        "open_private_mib": opened["private_mib"],
        "index_bytes_per_sample": sum(path.stat().st_size for path in out.rglob("*.arrow"))
        / arguments.samples,
        "num_cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
    }


def draw_shards(arguments: Arguments, folder: Path) -> None:
    """Write the shards: few different pictures, captions all different."""
    folder.mkdir()
    rng = np.random.default_rng(arguments.seed)
    pictures = [_picture(rng) for _ in range(_NUM_PICTURES)]
    words = [_word(rng) for _ in range(_NUM_WORDS)]
    per_shard = arguments.samples_per_shard
    for first in tqdm(range(0, arguments.samples, per_shard), desc="drawing", file=sys.stderr):
        with tarfile.open(folder / f"{first // per_shard:05d}.tar", "w") as tar:
            for number in range(first, min(first + per_shard, arguments.samples)):
                for suffix, data in (
                    ("jpg", pictures[number % _NUM_PICTURES]),
                    ("txt", _caption(rng, words).encode()),
                ):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def _picture(rng: np.random.Generator) -> bytes:
    small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((320, 240)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _word(rng: np.random.Generator) -> str:
    return "".join(map(chr, rng.integers(97, 123, rng.integers(2, 10))))


def _caption(rng: np.random.Generator, words: list[str]) -> str:
    """Some 16 words, frequent ones often, as in captions from the web."""
    places = np.minimum(rng.zipf(1.3, rng.integers(8, 25)), len(words)) - 1
    return " ".join(words[place] for place in places.tolist())


def _build(shards: list[Path], out: Path, options: ScanOptions) -> None:
    build_index(shards, out, options=options)


def _open(out: Path) -> None:
    index = open_index(out)
    index.captions()
    index.check_shards()


def _in_process(work: Any, *arguments: Any) -> dict[str, float]:
    """Seconds and largest private memory of some work in a new process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_timed, args=(send, work, arguments))
    process.start()
    result = receive.recv()
    process.join()
    return result


def _timed(send: Any, work: Any, arguments: tuple[Any, ...]) -> None:
    before = private_mib()
    largest = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            largest[0] = max(largest[0], private_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    work(*arguments)
    seconds = time.perf_counter() - start
    largest[0] = max(largest[0], private_mib())
    done.set()
    send.send({"seconds": seconds, "private_mib": largest[0] - before})


def private_mib() -> float:
    """Memory of this process that no file backs."""
    for line in _status_lines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_lines() -> Iterator[str]:
    status = Path("/proc/self/status")
    return iter(status.read_text(encoding="ascii").splitlines() if status.is_file() else ())


if __name__ == "__main__":
    sys.exit(main())
