"""A run of two stages, broken off anywhere; a batch that breaks training; a step that is slow."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from tessera.model.losses import LossConfig, fastclip
from tessera.pipeline.batch import DenseBatch, PackedBatch
from tessera.pipeline.device_copy import DeviceCopier, Sent
from tessera.pipeline.masking import MaskConfig
from tessera.training.command_line import Command
from tessera.training.config import (
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    WatchConfig,
)
from tessera.training.interrupt import Interrupted, StopRequests
from tessera.training.metrics import NonFiniteLossError, StepRecord, read_records
from tessera.training.opening import open_session
from tessera.training.run_folder import RunFolder
from tessera.training.sample_ids import read_sample_ids
from tessera.training.session import Session
from tessera.training.timeline import Timeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run must not take the root logger from pytest."""
    monkeypatch.setattr(train, "set_up_logging", lambda *_args, **_options: None)


def two_stages(index: Path, run_dir: Path) -> TrainConfig:
    """Six masked steps at 64 pixels, then five unmasked ones at 80 that keep an average."""
    return TrainConfig(
        recipe="flickr8k",
        run_dir=str(run_dir),
        model="tessera-demo",
        total_samples=16 * 6,
        batch_size=16,
        data=DataConfig(train=str(index), num_threads=1),
        mask=MaskConfig(kind="random", mask_ratio=0.5),
        optim=OptimConfig(learning_rate=1e-3),
        stages=(
            StageConfig(
                total_samples=8 * 5,
                batch_size=8,
                image_size=80,
                context_length=24,
                optim=OptimConfig(optimizer="lamb", learning_rate=1e-2, ema_samples=40),
            ),
        ),
        evaluation=EvaluationConfig(retrieval=(str(index),), ema=True),
        device="cpu",
        precision="float32",
        num_threads=1,
        log_every=2,
        save_every=4,
        keep_checkpoints=9,
        log_sample_ids=True,
    )


def run(config: TrainConfig) -> int:
    return train.run(Command(config=config), [], StopRequests())


def parts(run_dir: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    folder = run_dir / "checkpoints" / f"step_{step:09d}"
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def unbroken(coloured_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("stages") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "set_up_logging", lambda *_args, **_options: None)
        assert run(two_stages(coloured_index, run_dir)) == 0
    return run_dir


def test_the_record_runs_on_and_knows_the_stages(unbroken: Path) -> None:
    records = read_records(unbroken / "metrics.jsonl")
    assert [r.step for r in records] == list(range(1, 12))
    assert [r.stage for r in records] == [1] * 6 + [2] * 5
    assert [r.samples for r in records] == [16, 32, 48, 64, 80, 96, 104, 112, 120, 128, 136]
    assert records[6].lr == 1e-2
    assert all(r.grad_norm > 0 for r in records)
    ids = read_sample_ids(unbroken / "sample_ids.jsonl")
    assert sorted(i for step in range(1, 7) for i in ids[step]) == list(range(96))
    assert [len(ids[step]) for step in range(7, 12)] == [8] * 5
    assert ids[7] != ids[1][:8]  # the second stage does not begin as the first did
    assert json.loads((unbroken / "evaluation.json").read_text())["step"] == 11
    assert "mask none, 80 pixels" in (unbroken / "report.html").read_text()


def test_two_ranks_go_through_the_same_stages(
    unbroken: Path, coloured_index: Path, tmp_path: Path
) -> None:
    script = ROOT / "tests" / "integration" / "stages_on_ranks.py"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", str(script), str(coloured_index), str(tmp_path / "run")),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ours, alone = (
        read_records(folder / "metrics.jsonl") for folder in (tmp_path / "run", unbroken)
    )
    assert [record.stage for record in ours] == [record.stage for record in alone]
    assert [record.loss for record in ours] == pytest.approx(
        [record.loss for record in alone], abs=1e-4
    )


def test_the_second_stage_has_its_own_sizes_and_optimiser(unbroken: Path) -> None:
    first, last = parts(unbroken, 6), parts(unbroken, 11)
    assert len(first["open_clip_model"]["visual.positional_embedding"]) == 64 + 1
    assert len(last["open_clip_model"]["visual.positional_embedding"]) == 100 + 1
    assert len(last["open_clip_model"]["positional_embedding"]) == 24
    assert "ema" not in first
    assert last["ema"].keys() == last["open_clip_model"].keys()
    assert last["optimizer"]["step/group.0"] == 5  # LAMB's count, from the stage's start on


@pytest.mark.parametrize("broken_at", [3, 6, 9])
def test_broken_off_in_or_between_stages_it_goes_on_bit_for_bit(
    broken_at: int, unbroken: Path, coloured_index: Path, tmp_path: Path
) -> None:
    config = two_stages(coloured_index, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.claim(config)
    done = 0
    while done < broken_at:
        session = open_session(config, folder, Timeline())
        while session.step < session.config.num_steps and session.run_step < broken_at:
            train.take_step(session, StopRequests())
        session.save()
        session.end_stage()
        done = session.run_step
        session.close()
    folder.close()
    assert run(config) == 0
    for name in ("loss", "grad_norm", "lr", "samples", "stage"):
        ours, theirs = (
            [getattr(r, name) for r in read_records(path / "metrics.jsonl")]
            for path in (tmp_path / "run", unbroken)
        )
        assert ours == theirs
    expected = parts(unbroken, 11)
    for part, tensors in parts(tmp_path / "run", 11).items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[part][name]), (part, name)


@pytest.mark.parametrize("last_step", [6, 11])
def test_a_signal_behind_the_last_vote_of_a_stage_ends_the_run(
    coloured_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_step: int
) -> None:
    save = Session.save

    def signalled(session: Session) -> list[StepRecord]:
        if session.run_step == last_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(session)

    monkeypatch.setattr(Session, "save", signalled)
    run_dir, stops = tmp_path / "run", StopRequests()
    with stops.installed(), pytest.raises(Interrupted, match="SIGTERM"):
        train.run(Command(config=two_stages(coloured_index, run_dir)), [], stops)
    assert max(path.name for path in (run_dir / "checkpoints").iterdir()).endswith(f"{last_step}")
    assert len(read_records(run_dir / "metrics.jsonl")) == last_step
    assert not (run_dir / "evaluation.json").exists()


@pytest.mark.parametrize(("batch_size", "passes"), [(16, [0] * 6), (36, [0, 0, 0, 1, 1])])
def test_a_loss_with_memory_counts_passes_over_the_whole_run(
    coloured_index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    passes: list[int],
) -> None:
    seen: list[int] = []

    def rate(_schedule: str, _gamma: float, pass_number: int, _decay_passes: int) -> float:
        seen.append(pass_number)
        return 1.0 if pass_number == 0 else 0.5

    monkeypatch.setattr(fastclip, "inner_rate", rate)
    config = replace(
        two_stages(coloured_index, tmp_path / "run"),
        total_samples=batch_size * len(passes),
        batch_size=batch_size,
        loss=LossConfig(kind="fastclip_v1"),
    )
    assert run(config) == 0
    # 96 samples are a pass; the second stage has five steps of 8.
    later = [(batch_size * len(passes) + 8 * step) // 96 for step in range(5)]
    assert seen == passes + later


def test_a_loss_that_is_no_number_leaves_the_batch_and_the_way_to_see_it(
    coloured_index: Path, tmp_path: Path
) -> None:
    config = two_stages(coloured_index, tmp_path / "run")
    steep = OptimConfig(learning_rate=1e30)
    config = replace(config, stages=(), evaluation=EvaluationConfig(), optim=steep, log_every=6)
    with pytest.raises(NonFiniteLossError) as caught:
        run(config)
    step = caught.value.step
    assert 1 < step < 6  # found at the flush of step 6, but it is the broken step's batch
    (file,) = (tmp_path / "run").glob("bad_batch_*.safetensors")
    assert str(file) in str(caught.value)
    stored = load_file(file)
    ids = stored["sample_ids"].tolist()
    assert f"sample ids {', '.join(map(str, ids[:8]))}" in str(caught.value)
    other = RunFolder(tmp_path / "other")
    other.claim(config)
    session = open_session(config, other, Timeline())
    session.loader.seek(step - 1)
    batch = next(session.loader)
    session.close()
    other.close()
    assert all(torch.equal(getattr(batch, name), tensor) for name, tensor in stored.items())
    command = str(caught.value).splitlines()[-1].strip().removeprefix("python ")
    shown = subprocess.run(
        [sys.executable, *shlex.split(command), "--html", str(tmp_path / "b.html"), "--count", "2"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout.splitlines()[-1])["keys"] == [f"{n:09d}" for n in ids[:2]]


def test_a_slow_step_says_why(
    coloured_index: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(
        two_stages(coloured_index, tmp_path / "run"),
        stages=(),
        evaluation=EvaluationConfig(),
        watch=WatchConfig(slow_step=4),
        total_samples=16 * 14,
    )
    folder = RunFolder(tmp_path / "run")
    folder.claim(config)
    session = open_session(config, folder, Timeline())
    for _ in range(14):
        if session.step == 12:
            stall(monkeypatch)
        train.take_step(session, StopRequests())
    records = session.flush()
    session.close()
    folder.close()
    assert max(records, key=lambda r: r.step_s).step == 13
    message = caplog.messages[-1]
    assert message.startswith("step 13 took")
    assert "went into waiting for data" in message


def stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next batch come late, as from a slow disk."""
    receive = DeviceCopier.receive

    def late(copier: DeviceCopier, sent: Sent) -> PackedBatch | DenseBatch:
        time.sleep(4)
        monkeypatch.setattr(DeviceCopier, "receive", receive)
        return receive(copier, sent)

    monkeypatch.setattr(DeviceCopier, "receive", late)
