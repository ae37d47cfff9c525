"""The tables that the benchmark writes are an index, and its figures are those of its orders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tessera.pipeline.index import open_index
from tessera.tools.benchmark_large_index import write_index

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_written_opens_as_an_index(tmp_path: Path) -> None:
    write_index(tmp_path / "index", num_samples=2500, samples_per_shard=1000)
    index = open_index(tmp_path / "index")
    assert index.shard_sizes == [1000, 1000, 500]
    assert index.keys([7, 2499]) == ["0000000007", "0000002499"]
    captions = index.captions()
    rows = captions.draw(np.array([5, 2499]), np.zeros(2))
    tokens, offsets = captions.pack(rows, 77)
    assert captions.texts(rows) == ["a photo of a thing"] * 2
    assert offsets.tolist() == [0, 14, 28]
    assert len(tokens) == 28


def test_the_benchmark_runs(tmp_path: Path) -> None:
    words = ("--samples", "20000", "--order-samples", "50000", "--samples-per-shard", "100",
             "--steps", "5", "--folder", str(tmp_path))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "tools/benchmark_large_index.py", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_samples"] == 20000
    for kind in ("global", "window"):
        assert 0 < result[f"{kind}_order_ms"] <= result[f"{kind}_order_largest_ms"]
        assert result[f"{kind}_order_ms"] < result[f"{kind}_plan_ms"]
        assert result[f"large_{kind}_order_private_mib"] < 50
    assert not list(tmp_path.iterdir())
