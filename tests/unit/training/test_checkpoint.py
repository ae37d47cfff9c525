"""Checkpoints come back bit for bit, or not at all."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from tessera.training import checkpoint
from tessera.training.checkpoint import Checkpoint, CheckpointError, CheckpointWriter


def trained() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def made(step: int) -> Checkpoint:
    model, optimizer = trained()
    return Checkpoint(
        step=step,
        parts={
            checkpoint.WEIGHTS: dict(model.state_dict()),
            checkpoint.OPTIMIZER: checkpoint.optimizer_tensors(model, optimizer),
            "loss": {"log_u": torch.arange(4.0)},
            "mask": {},
        },
        architecture={"model_cfg": {}},
        state={"samples": step * 10},
    )


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, made(step), keep)


def test_model_and_optimiser_come_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    model, optimizer = trained()
    fresh = nn.Linear(5, 3)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.step == 7
    assert found.state["samples"] == 70
    assert torch.equal(found.part("loss")["log_u"], torch.arange(4.0))
    assert found.part("mask") == {}
    fresh.load_state_dict(found.part(checkpoint.WEIGHTS))
    checkpoint.restore_optimizer(fresh, fresh_optimizer, found.part(checkpoint.OPTIMIZER))
    for net, updates in ((model, optimizer), (fresh, fresh_optimizer)):
        torch.manual_seed(1)
        net(torch.randn(4, 5)).square().mean().backward()
        updates.step()
    assert torch.equal(model.weight, fresh.weight)
    assert torch.equal(model.bias, fresh.bias)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000003", "step_000000010"]


@contextmanager
def killed_while_removing(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    def killed(path: Path, **_: object) -> None:
        if path.exists():
            raise SystemExit(f"killed while removing {path.name}")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(SystemExit, match=name):
            yield


def test_a_kill_in_the_removal_leaves_no_half_under_a_checkpoints_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    with killed_while_removing(monkeypatch, r"\.partial_old_step_000000001"):
        save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_000000002"]
    CheckpointWriter(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000002"]


def test_a_kill_while_a_step_is_saved_again_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    with killed_while_removing(monkeypatch, r"\.partial_old_step_000000001"):
        save(tmp_path, 1, keep=1)
    CheckpointWriter(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    weights = newest / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    "name", ["state.json", "optimizer.safetensors", "open_clip_model.safetensors"]
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (save(tmp_path, 1) / name).unlink()
    with pytest.raises(CheckpointError, match="whole"):
        checkpoint.load_latest(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(tmp_path / "step_000000001")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (trap,))

    weights = path / "open_clip_model.safetensors"
    weights.write_bytes(pickle.dumps(Trap()))
    state = json.loads((path / "state.json").read_text())
    state["sha256"][weights.name] = checkpoint._hash(weights)
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not trap.exists()


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000001"]
    assert checkpoint.load_latest(tmp_path) is not None


def test_an_empty_folder_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "none") is None


def test_a_writer_writes_beside_the_training_and_removes_what_a_killed_one_left(
    tmp_path: Path,
) -> None:
    (tmp_path / ".partial_step_000000009").mkdir()
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in (1, 2, 3):
        writer.start(made(step))
    writer.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000002", "step_000000003"]


def test_what_goes_wrong_in_the_background_is_raised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(tmp_path, keep=2)
    monkeypatch.setattr(checkpoint, "save_tensors", full)
    writer.start(made(1))
    with pytest.raises(CheckpointError, match="disk is full"):
        writer.wait()
    writer.check()
    monkeypatch.undo()
    writer.start(made(2))
    writer.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000002"]
