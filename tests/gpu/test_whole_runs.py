"""Whole runs of train.py on the device: streams, kill and resume, memory, compilation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils

from tessera.recipes import find_recipe
from tessera.training.config import DataConfig, EvaluationConfig
from tessera.training.opening import open_session
from tessera.training.run_folder import RunFolder
from tessera.training.timeline import Timeline

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
BATCH = 32


def command(index: Path, run_dir: Path, device: torch.device, steps: int, *more: str) -> list[str]:
    words = [
        *(sys.executable, "train.py", "flickr8k", "--data.train", str(index)),
        *("--run-dir", str(run_dir), "--model", "tessera-demo", "--device", device.type),
        *("--data.device", device.type, "--total-samples", str(BATCH * steps)),
        *("--batch-size", str(BATCH), "--optim.warmup-samples", "64"),
        *("--log-every", "10", "--evaluation.retrieval", "--evaluation.zero-shot"),
    ]
    return [*words, *more]


def run(words: list[str], **environment: str) -> None:
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def column(run_dir: Path, name: str) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]


def test_streams_change_nothing(coloured_index: Path, tmp_path: Path, device: torch.device) -> None:
    """Against a run whose every kernel ends before the next is launched."""
    run(command(coloured_index, tmp_path / "overlapped", device, 30))
    run(command(coloured_index, tmp_path / "one-by-one", device, 30), CUDA_LAUNCH_BLOCKING="1")
    ours, theirs = (column(tmp_path / name, "loss") for name in ("overlapped", "one-by-one"))
    assert ours[0] == theirs[0], "the first batch and the forward pass hold no atomics"
    assert ours == pytest.approx(theirs, rel=0.02)


def test_a_killed_run_goes_on(coloured_index: Path, tmp_path: Path, device: torch.device) -> None:
    run(command(coloured_index, tmp_path / "unbroken", device, 20))
    words = command(coloured_index, tmp_path / "killed", device, 20, "--save-every", "5")
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not (tmp_path / "killed" / "checkpoints" / "step_000000010").is_dir():
        assert process.poll() is None or process.returncode == 0
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(words)
    ours, theirs = (column(tmp_path / name, "loss") for name in ("killed", "unbroken"))
    assert column(tmp_path / "killed", "step") == list(range(1, 21))
    assert ours == pytest.approx(theirs, rel=0.02)


def test_500_steps_keep_their_memory_and_their_kernels(
    coloured_index: Path, tmp_path: Path, device: torch.device
) -> None:
    """Nothing is compiled after warm-up, and nothing is kept from one step to the next."""
    on_gpu = device.type == "cuda"
    steps, warm = (500, 100) if on_gpu else (12, 6)
    config = replace(
        find_recipe("flickr8k").build(),
        model="tessera-demo",
        run_dir=str(tmp_path),
        total_samples=BATCH * steps,
        batch_size=BATCH,
        device="cuda" if on_gpu else "cpu",
        compile=on_gpu,
        data=DataConfig(train=str(coloured_index), device="cuda" if on_gpu else "cpu"),
        evaluation=EvaluationConfig(),
    )
    session = open_session(config, RunFolder(tmp_path), Timeline())
    held, compiled = [], []
    for step in range(steps):
        session.start_step()
        session.update(next(session.loader))
        if step >= warm:
            held.append(torch.cuda.memory_allocated() if on_gpu else 0)
            compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    session.close()
    assert len(set(compiled)) == 1
    # Batches differ in their tokens: the range stays, the level does not rise.
    half = len(held) // 2
    assert max(held[half:]) <= 1.01 * max(held[:half])
