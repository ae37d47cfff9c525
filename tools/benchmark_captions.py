"""How fast are captions imported on one core, and in how much memory?

    python tools/benchmark_captions.py --rows 1000000

Makes an index of as many samples, LaCLIP's files (CSV and one txt, joined by key) and a JSON map in
random order (joined by URL), and imports each: once as a dry run (read, join, prove, sort by
sample) and once with tokenising and writing. Captions are 14 words of 20,000, drawn by Zipf's law.
Each import is a process of its own; rates are of its processor time, from opening the index on.
"""

from __future__ import annotations

import csv
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import pyarrow as pa
import tyro

from tessera.pipeline.index import COLUMN_FIELD, COLUMNS_DIR
from tessera.pipeline.index.arrow_file import write_batch
from tessera.tools.add_captions import Arguments as Import
from tessera.tools.add_captions import add_captions

_SAMPLES_PER_SHARD = 10_000
_NUM_WORDS = 14
_VOCABULARY = 20_000
_KIB = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Measure the import of captions."""

    rows: int = 1_000_000
    """Rows of each file, and samples of the index."""

    def __post_init__(self) -> None:
        if self.rows < 1000:
            raise ValueError(f"--rows must be at least 1000, got {self.rows}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any]:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, arguments.rows)
        print(f"{'format':9} {'':12} {'rows/s':>9} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9}")
        for kind in ("laclip", "json-map"):
            for dry_run in (True, False):
                # Of its own: the peak of memory is that of a whole process.
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found = pool.apply(measure, (folder, kind, dry_run))
                results.append(found)
                what = "dry run" if dry_run else "with tokens"
                print(
                    f"{kind:9} {what:12} {found['rows_per_cpu_s']:9,.0f} {found['cpu_s']:7.1f} "
                    f"{found['wall_s']:7.1f} {found['peak_mib']:9,.0f}"
                )
    environment = {"python": platform.python_version(), "machine": platform.machine()}
    return {"rows": arguments.rows, "environment": environment, "results": results}


def make_files(folder: Path, num_rows: int) -> None:
    """Write an index with urls, and the same captions as LaCLIP's files and as a JSON map."""
    # It imports torch, which would be counted as memory of the import.
    from tessera.tools.benchmark_large_index import write_index

    draw = np.random.default_rng(0)
    words = np.array([f"{'bdfgk'[n % 5]}o{n:x}" for n in range(_VOCABULARY)])
    ranks = np.minimum(draw.zipf(1.3, (num_rows, _NUM_WORDS)), _VOCABULARY) - 1
    texts = [" ".join(row) for row in words[ranks]]
    urls = [f"https://img{n % 97}.example.org/pictures/{n}.jpg" for n in range(num_rows)]
    write_index(folder / "index", num_rows, _SAMPLES_PER_SHARD)
    (folder / "index" / COLUMNS_DIR).mkdir()
    column = pa.array(urls, pa.large_string())
    schema = pa.schema([pa.field(COLUMN_FIELD, column.type, nullable=False)])
    write_batch(
        folder / "index" / COLUMNS_DIR / "url.arrow",
        pa.RecordBatch.from_arrays([column], schema=schema),
    )
    with (folder / "originals.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows((f"{n:010d}.jpg", text) for n, text in enumerate(texts))
    with (folder / "rewrites.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"a picture of {text}\n" for text in texts)
    with (folder / "map.json").open("w", encoding="utf-8") as file:
        entries = (f'"{urls[n]}": "{texts[n]}"' for n in draw.permutation(num_rows).tolist())
        file.write("{" + next(entries))
        file.writelines(f", {entry}" for entry in entries)
        file.write("}")


def measure(folder: Path, kind: str, dry_run: bool) -> dict[str, Any]:
    """Import one kind of files in this process."""
    laclip = kind == "laclip"
    names = ("originals.csv", "rewrites.txt") if laclip else ("map.json",)
    arguments = Import(
        index=folder / "index",
        name=kind,
        files=tuple(folder / name for name in names),
        format="laclip" if laclip else "json-map",
        join="key" if laclip else "url",
        dry_run=dry_run,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    report = add_captions(arguments)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "format": kind,
        "dry_run": dry_run,
        "rows_per_cpu_s": report.num_rows / cpu,
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_mib": peak_mib(),
        "coverage": report.coverage,
    }


def peak_mib() -> float:
    """Most memory this process has held, mapped files included.

    Not `ru_maxrss`: a new process starts with that of the one it was forked from.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / _KIB


if __name__ == "__main__":
    sys.exit(main())
