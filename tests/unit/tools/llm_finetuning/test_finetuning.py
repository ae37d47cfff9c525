"""The first stage on a random tiny Llama: it learns, goes on, and does not hang on the ranks."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tessera.model.text_encoders.lora import LoraConfig, adapter_tensors
from tessera.tools import finetune_llm
from tessera.tools.llm_finetuning.session import FineTuning, train
from tessera.tools.llm_finetuning.settings import Settings
from tessera.training.distributed import Ranks

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def settings(caption_index: Path, llm: Path, tmp_path: Path) -> Settings:
    return Settings(
        index=str(caption_index),
        llm=llm,
        out=tmp_path / "run",
        lora=LoraConfig(rank=8, alpha=16, dropout=0.1),
        batch_size=16,
        steps=12,
        warmup_steps=2,
        learning_rate=5e-3,
        max_tokens=64,
        device="cpu",
        log_every=4,
        save_every=6,
    )


def weights(run: FineTuning) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in adapter_tensors(run.encoder.backbone).items()}


def test_it_lowers_the_loss_and_raises_the_probe(settings: Settings) -> None:
    run = FineTuning(replace(settings, steps=60, save_every=60), Ranks())
    before = run.probe()
    losses = train(run, Ranks(), lambda: False)
    after = run.probe()
    assert before.num_images == 47  # one sample has a single text
    assert losses["last"] < 0.6 * losses["first"]
    assert after.first_to_second > before.first_to_second + 0.1
    assert after.second_to_first > before.second_to_first + 0.1


def test_a_stopped_run_goes_on_bit_for_bit(settings: Settings, tmp_path: Path) -> None:
    unbroken = FineTuning(replace(settings, out=tmp_path / "unbroken"), Ranks())
    train(unbroken, Ranks(), lambda: False)
    first = FineTuning(settings, Ranks())
    train(first, Ranks(), lambda: first.step == 5)
    assert first.step == 5
    second = FineTuning(settings, Ranks())
    assert second.step == 5
    train(second, Ranks(), lambda: False)
    expected = weights(unbroken)
    for name, tensor in weights(second).items():
        assert torch.equal(tensor, expected[name]), name
    assert any(tensor.abs().sum() > 0 for name, tensor in expected.items() if "lora_B" in name)


def test_another_run_does_not_go_on_in_the_folder(settings: Settings) -> None:
    FineTuning(settings, Ranks())
    with pytest.raises(ValueError, match=r"scale 50\.0, now 20\.0"):
        FineTuning(replace(settings, scale=20.0), Ranks())
    FineTuning(replace(settings, log_every=1), Ranks())


def test_steps_done_again_are_logged_once(settings: Settings) -> None:
    run = FineTuning(settings, Ranks())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save", lambda: None)  # killed before its first checkpoint
        train(run, Ranks(), lambda: run.step == 5)
    with (settings.out / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train(FineTuning(settings, Ranks()), Ranks(), lambda: False)
    log = (settings.out / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [4, 6, 8, 12]


def test_a_kill_in_a_checkpoint_leaves_nothing_behind_the_next_start(settings: Settings) -> None:
    left = settings.out / "checkpoints" / ".partial_step_000000005"
    left.mkdir(parents=True)
    FineTuning(settings, Ranks())
    assert not left.exists()


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(settings: Settings) -> None:
    run = FineTuning(replace(settings, save_every=2), Ranks())
    update = run.update

    def broken() -> torch.Tensor:
        loss = update()
        return loss * torch.nan if run.step == 4 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "update", broken)
        with pytest.raises(RuntimeError, match="the loss is nan in one of the 2 steps up to 4"):
            train(run, Ranks(), lambda: False)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_000000002"]


def test_a_run_does_not_go_on_with_another_probe(settings: Settings, coloured_index: Path) -> None:
    FineTuning(settings, Ranks())
    with pytest.raises(ValueError, match="another probe:"):
        FineTuning(replace(settings, probe=str(coloured_index)), Ranks())


def test_two_runs_do_not_work_in_one_folder(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [settings.index, "--llm", str(settings.llm), "--out", str(settings.out)]
    words += [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--warmup-steps",
        "1",
        "--max-tokens",
        "64",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["finetune_llm.py", *words])
    monkeypatch.setattr(finetune_llm, "set_up_logging", lambda **_: None)
    settings.out.mkdir()
    with (settings.out / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert finetune_llm.main() == 2
    assert "another process works in" in capsys.readouterr().err
    assert finetune_llm.main() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 12}, "warmup_steps 12 must be below the run's 12 steps"),
        ({"sources": ("rewrites",)}, "no caption source 'rewrites'"),
        ({"hard_negatives": "minilm"}, "no embeddings 'minilm'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_read(
    settings: Settings, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuning(replace(settings, llm=Path("nowhere"), **change), Ranks())


def tool(settings: Settings, num_ranks: int) -> dict[str, Any]:
    """Run the tool without dropout, whose draws hang on the rank; returns its result."""
    starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    done = subprocess.run(
        [
            sys.executable, *(starter if num_ranks > 1 else []), "tools/finetune_llm.py",
            settings.index, "--llm", str(settings.llm), "--out", str(settings.out),
            "--batch-size", "16", "--steps", "4", "--warmup-steps", "1", "--lora.dropout", "0",
            "--learning-rate", "5e-3", "--max-tokens", "64", "--device", "cpu", "--log-every", "1",
            "--num-threads", "1", "--save-every", "2",
        ],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_four_ranks_do_what_one_does_and_go_on_bit_for_bit(
    settings: Settings, tmp_path: Path
) -> None:
    one = tool(replace(settings, out=tmp_path / "one"), 1)
    four = tool(replace(settings, out=tmp_path / "four"), 4)
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert four["steps"] == one["steps"] == 4
    shutil.copytree(tmp_path / "four", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "adapter")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_000000004")
    tool(replace(settings, out=tmp_path / "resumed"), 4)
    on_one, on_four, resumed = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("one", "four", "resumed")
    )
    for name, tensor in on_four.items():
        # Ranks add up in another order: 3e-6 of a tensor were found after these steps.
        assert (tensor - on_one[name]).norm() < 1e-4 * on_one[name].norm(), name
        assert torch.equal(tensor, resumed[name])
    log = (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]


def test_a_seed_may_be_a_date(settings: Settings) -> None:
    run = FineTuning(replace(settings, seed=20_261_123), Ranks())
    assert torch.isfinite(run.update())
