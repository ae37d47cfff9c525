"""TensorBoard's files and W&B's runs hold every step once, restarts included."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.training.config import WatchConfig
from tessera.training.metrics import StepRecord
from tessera.training.run_folder import RunFolder
from tessera.training.watch import check_watch, open_watchers
from tests.unit.training.test_config import small


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step, samples=step * 10, loss=1 / step, lr=0.1, logit_scale=14.0, step_s=0.5,
        data_wait_s=0.1, grad_norm=2.0,
    )  # fmt: skip


def test_a_package_that_is_not_there_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
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
        board.write_scores(last, {"top-1, heldout": last / 10})
        board.close()
    shown = EventAccumulator(str(folder.tensorboard))
    shown.Reload()
    losses = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert shown.Scalars("train/grad_norm")[0].value == 2.0
    scores = [(e.step, e.value) for e in shown.Scalars("evaluation/top-1, heldout")]
    assert scores == [(8, pytest.approx(0.8))]


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


_WATCHED = """
import logging, sys
from dataclasses import replace
from pathlib import Path
from tests.unit.training.test_config import small
from tests.unit.training.test_watch import record
from tessera.training.config import WatchConfig
from tessera.training.run_folder import RunFolder
from tessera.training.watch import open_watchers

logging.basicConfig(format="said: %(message)s", stream=sys.stdout)
config = replace(small(), watch=WatchConfig(wandb="tessera"))
(run,) = open_watchers(config, RunFolder(Path(sys.argv[1])), resumed_step=0)
run.write([record(1), record(2)])
run.write_scores(2, {"top-1, heldout": 0.5})
run.close()
"""


@pytest.mark.parametrize("key", ["0" * 40, ""], ids=["no network", "no login"])
def test_without_a_network_or_a_login_the_run_is_written_offline(tmp_path: Path, key: str) -> None:
    """The service is a closed port of this machine; the package keeps state, hence a process."""
    pytest.importorskip("wandb")
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "WANDB_API_KEY": key}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | closed
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(tmp_path)], cwd=Path(__file__).parents[3],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("said: ")]
    assert "Weights & Biases cannot be used" in line
    assert list(tmp_path.rglob("*.wandb"))
