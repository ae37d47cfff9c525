"""tools/benchmark_loss.py measures both forms and refuses what it cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/benchmark_loss.py", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def test_tiles_need_less_memory_for_the_same_gradient() -> None:
    done = run(
        "--batch-sizes", "2048,3072", "--tile-sizes", "256", "--whole-up-to", "2048",
        "--dim", "32", "--repeats", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["loss"]
    found = {(row["pairs"], row["form"]): row for row in rows}
    assert set(found) == {(2048, "whole"), (2048, "tile 256"), (3072, "tile 256")}
    whole, tiles = found[2048, "whole"], found[2048, "tile 256"]
    assert whole["bytes"] > 2048**2 * 4 > 2 * tiles["bytes"]
    assert 0 < tiles["gradient_error"] < 1e-4
    assert found[3072, "tile 256"]["compared_with"] == "float64"
    assert 0 < found[3072, "tile 256"]["gradient_error"] < 1e-4


def test_other_losses_are_compared_with_their_whole_form() -> None:
    done = run(
        "--kind", "fastclip_v3", "--batch-sizes", "256,512", "--tile-sizes", "64",
        "--whole-up-to", "256", "--dim", "32", "--repeats", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, tiles, larger = json.loads(done.stdout.splitlines()[-1])["loss"]
    assert tiles["compared_with"] == "whole"
    assert 0 < tiles["gradient_error"] < 1e-4
    assert larger["gradient_error"] is larger["compared_with"] is None


def test_no_repeats_are_refused() -> None:
    done = run("--repeats", "0")
    assert done.returncode == 2
    assert "--repeats" in done.stderr
