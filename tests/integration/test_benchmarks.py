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


QUICK = ("--image-size", "64", "--patch-size", "8", "--batch-size", "8", "--images", "48",
         "--repeats", "2")  # fmt: skip


def test_data_benchmark(coloured_index: Path, tmp_path: Path) -> None:
    html, png = tmp_path / "page.html", tmp_path / "bars.png"
    result = last_line(
        "tools/benchmark_data.py", str(coloured_index), *QUICK, "--threads", "2",
        "--baselines", "open_clip_transform", "open_clip", "torchvision", "dali_reader",
        "--sweep.mask", "none", "--html", str(html), "--png", str(png),
    )  # fmt: skip
    stages = ["read", "decode", "patchify", "mask", "pack"]
    for kind in ("one_core", "all_cores"):
        rungs = {rung["name"]: rung for rung in result["ladder"][kind]}
        assert [name for name in rungs if name != "copy"] == [*stages, "whole step"]
        rates = [rung["images_per_s"] for rung in rungs.values()]
        assert rates == sorted(rates, reverse=True)  # every stage costs something
    whole = rungs_total = 0.0
    for rung in result["ladder"]["one_core"]:
        rungs_total += rung["us_per_image"]
        whole = 1e6 / rung["images_per_s"]
    assert abs(whole - rungs_total) < 1e-6 * whole
    assert not result["left_out"]
    for name in ("one_core", "all_cores", "loader", "full_decode", "open_clip_transform",
                 "open_clip", "torchvision", "dali_reader"):  # fmt: skip
        side = result["sides"][name]
        rate = side["images_per_s"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"], name
        assert side["memory_bytes"] > 50e6, name
    assert result["images_per_side"] == 48
    assert result["loader"]["stages"]["decode"]["num_samples"] >= 16
    assert result["bytes_per_image"]["ours"] < result["bytes_per_image"]["open_clip"] / 7
    assert result["sweep"][0]["value"] == "none"
    assert result["sweep"][0]["images_per_s"]["median"] > 0
    assert result["storage"]["samples_warm_images_per_s"] > 0
    assert result["environment"]["torch"]
    page = html.read_text(encoding="utf-8")
    assert "What each stage costs" in page
    assert "open_clip&#39;s loader" in page
    assert png.read_bytes().startswith(b"\x89PNG")


def test_data_benchmark_needs_only_a_folder_of_tars(coloured_index: Path) -> None:
    shards = coloured_index.parent / "shards"
    result = last_line(
        "tools/benchmark_data.py", str(shards), *QUICK, "--baselines", "--no-storage"
    )  # fmt: skip
    assert result["num_samples"] == 96
    assert set(result["sides"]) == {"one_core", "all_cores", "loader", "full_decode"}
    assert not list(shards.glob("index*"))


def test_data_benchmark_refuses_what_does_not_fit(coloured_index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/benchmark_data.py", str(coloured_index), "--batch-size", "97"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--batch-size 97 is more than the 96 usable samples" in done.stderr


def test_train_comparison_refuses_what_open_clip_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "tools/benchmark_train.py", "compare", "--model", "tessera-demo"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "open_clip has no model 'tessera-demo'" in done.stderr


def test_train_benchmark(coloured_index: Path) -> None:
    result = last_line(
        "tools/benchmark_train.py", "recipe", "--steps", "3", "--warmup", "1", "flickr8k",
        "--data.train", str(coloured_index), "--evaluation.retrieval", str(coloured_index),
        "--model", "tessera-demo", "--batch-size", "8", "--total-samples", "80",
        "--optim.warmup-samples", "8",
    )  # fmt: skip
    assert result["pairs_per_s"] > 0
    assert 0 <= result["data_wait_share"] < 1
    assert {"forward", "backward", "optimiser"} <= set(result["step_split"])
    assert result["peak_memory_bytes"] > 0
