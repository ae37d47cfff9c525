"""TensorBoard's files and W&B's runs hold every step once, restarts included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.training.test_config import small
from training.config import WatchConfig
from training.metrics import StepRecord
from training.run_folder import RunFolder
from training.watch import check_watch, open_watchers


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step, samples=step * 10, loss=1 / step, lr=0.1, logit_scale=14.0, step_s=0.5,
        data_wait_s=0.1, grad_norm=2.0,
    )  # fmt: skip


def test_a_package_that_is_not_there_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        check_watch(WatchConfig(tensorboard=True))
    with pytest.raises(ValueError, match="pip install wandb"):
        check_watch(WatchConfig(wandb="project"))
    check_watch(WatchConfig())


def test_nothing_is_opened_unasked(tmp_path: Path) -> None:
    assert open_watchers(small(), RunFolder(tmp_path), resumed_step=0) == []
    assert not any(tmp_path.iterdir())


def test_tensorboard_shows_each_step_once_behind_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, folder = replace(small(), watch=WatchConfig(tensorboard=True)), RunFolder(tmp_path)
    for resumed, last in ((0, 6), (4, 8)):  # the steps 5 and 6 are done again
        (board,) = open_watchers(config, folder, resumed_step=resumed)
        board.write([record(step) for step in range(resumed + 1, last + 1)])
        board.close()
    shown = EventAccumulator(str(folder.tensorboard))
    shown.Reload()
    losses = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert shown.Scalars("train/grad_norm")[0].value == 2.0


def test_wandb_goes_on_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config, folder = replace(small(), watch=WatchConfig(wandb="tessera")), RunFolder(tmp_path)
    ids = []
    for resumed in (0, 2, 0):
        (run,) = open_watchers(config, folder, resumed_step=resumed)
        run.write([record(resumed + 1), record(resumed + 2)])
        run.close()
        ids.append(folder.wandb_id.read_text())
    assert ids[0] == ids[1] != ids[2]
    written = [path.stem.removeprefix("run-") for path in tmp_path.rglob("*.wandb")]
    assert set(written) == set(ids)
