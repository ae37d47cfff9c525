"""tools/benchmark_masks.py measures every strategy and refuses what it cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/benchmark_masks.py", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def test_every_strategy_has_a_row() -> None:
    done = run(
        "--batch-sizes", "2,4", "--num-patches", "64", "--patch-size", "8", "--repeats", "2",
        "--anchor-ratios", "0.05", "--slow",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["masks"]
    names = {row["strategy"] for row in rows}
    wanted = {"budget", "topk", "threshold", "fill", "N x N", "embedding"}
    assert names == {f"cluster, {name} @0.05" for name in wanted} | {
        "random", "grid", "block", "kmeans", "edge_aware @0.05",
    }  # fmt: skip
    assert len(rows) == 2 * len(names)
    assert all(row["us_per_image"] >= row["us_per_image_least"] > 0 for row in rows)
    memory = {row["strategy"]: row["bytes_per_image"] for row in rows}
    assert memory["cluster, N x N @0.05"] > 64 * 64 * 4, "all pairs are held at once"


def test_a_number_of_patches_that_is_no_square_is_refused() -> None:
    done = run("--num-patches", "200")
    assert done.returncode == 2
    assert "square" in done.stderr
