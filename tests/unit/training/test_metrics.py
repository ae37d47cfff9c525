"""The step log survives restarts, and refuses losses that are no numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tessera.training.config import TrainConfig
from tessera.training.metrics import DEVICE, NonFiniteLossError, StepLog, describe, read_records
from tessera.training.stages import Stage, stages_of


def alone(num_steps: int, batch_size: int = 10) -> Stage:
    config = TrainConfig(
        recipe="demo",
        run_dir="x",
        model="tessera-demo",
        total_samples=num_steps * batch_size,
        batch_size=batch_size,
    )
    return stages_of(config)[0]


def add(log: StepLog, step: int, loss: float, norm: float = 0.25) -> None:
    known = {"samples": step * 10, "lr": 0.1, "step_s": 0.5, "data_wait_s": 0.1}
    log.add(torch.tensor(loss), torch.tensor(2.0), torch.tensor(norm), step=step, **known)


def test_steps_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = StepLog(path, resumed_step=0)
    for step in (1, 2, 3):
        add(log, step, float(step))
    log.flush()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # a crash in the middle of a line
    log = StepLog(path, resumed_step=2)
    add(log, 3, 30.0)
    log.flush()
    assert [(r.step, r.loss) for r in read_records(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert len(path.read_text().splitlines()) == 3


def test_a_loss_that_is_no_number_stops_the_run_and_is_on_record(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl", resumed_step=0)
    add(log, 1, 2.0)
    add(log, 2, float("nan"))
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 2") as caught:
        log.flush()
    assert caught.value.step == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == 2.0


def test_a_gradient_that_is_no_number_stops_the_run_a_step_before_the_loss(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl", resumed_step=0)
    add(log, 1, 2.0)
    add(log, 2, 2.0, norm=float("inf"))
    add(log, 3, float("nan"))
    with pytest.raises(NonFiniteLossError, match="gradient is inf at step 2"):
        log.flush()


def test_steps_share_the_wait_for_the_device(tmp_path: Path) -> None:
    log = StepLog(None, resumed_step=0)
    for step in (1, 2):
        add(log, step, 1.0)
    first, second = log.flush()
    assert first.step_s == second.step_s == pytest.approx(0.5 + first.parts_s[DEVICE])
    assert first.parts_s[DEVICE] > 0


def test_the_log_line_of_a_later_stage_counts_its_own_steps() -> None:
    stage = replace(alone(100), number=2, count=3, first_step=40, first_sample=400)
    log = StepLog(None, resumed_step=40)
    add(log, 50, 3.0)
    line = describe(log.flush(), stage, torch.device("cpu"))
    assert line.startswith("stage 2/3 | step 10/100 | samples 500 | ")
    assert "eta 45s" in line


def test_the_log_line_has_what_a_person_watches(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl", resumed_step=0)
    for step in (1, 2):
        add(log, step, 3.0)
    line = describe(log.flush(), alone(100), torch.device("cpu"))
    assert line.startswith(
        "step 2/100 | samples 20 | loss 3.000 | lr 1.0e-01 | scale 7.4 | grad 0.25"
    )
    assert "20 pairs/s | data wait 20.0%" in line
    assert line.endswith("eta 49s")


def test_a_long_wait_for_data_names_what_it_waited_for(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl", resumed_step=0)
    known = {"samples": 10, "lr": 0.1, "step_s": 0.5, "data_busy_s": {"decode": 0.4}}
    for step, (wait, stage) in enumerate(((0.1, "decode"), (0.1, "read"), (0.2, "decode")), 1):
        log.add(
            torch.tensor(1.0), torch.tensor(2.0), torch.tensor(1.0), step=step, data_wait_s=wait,
            data_bottleneck=stage, **known,
        )  # fmt: skip
    records = log.flush()
    assert "data wait 26.7% for decode | " in describe(records, alone(100), torch.device("cpu"))
    assert read_records(tmp_path / "metrics.jsonl") == records
