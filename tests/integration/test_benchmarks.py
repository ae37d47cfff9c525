"""The benchmarks run, tell what they measured, and end with one JSON line."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def last_line(*words: str) -> dict:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_data_benchmark(coloured_index: Path) -> None:
    result = last_line(
        "tools/benchmark_data.py", str(coloured_index), "--image-size", "64", "--patch-size", "8",
        "--batch-size", "8", "--batches", "4", "--repeats", "2",
    )  # fmt: skip
    assert result["loader_pairs_per_s"] > 0
    assert set(result["stage_us_per_pair"]) == {"read", "decode", "mask", "pack"}
    assert result["bytes_per_pair"] < result["open_clip_bytes_per_pair"] / 7
    ratio = result["one_core_ratio"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert result["environment"]["torch"]


def test_train_benchmark(coloured_index: Path) -> None:
    result = last_line(
        "tools/benchmark_train.py", "--steps", "3", "--warmup", "1", "flickr8k",
        "--data.train", str(coloured_index), "--evaluation.retrieval", str(coloured_index),
        "--model", "tessera-demo", "--batch-size", "8", "--total-samples", "80",
        "--optim.warmup-samples", "8",
    )  # fmt: skip
    assert result["pairs_per_s"] > 0
    assert 0 <= result["data_wait_share"] < 1
    assert {"forward", "backward", "optimiser"} <= set(result["step_split"])
    assert result["peak_memory_bytes"] > 0
