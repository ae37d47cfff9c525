"""The step log survives restarts, and refuses losses that are no numbers."""

import json
from pathlib import Path

import pytest
import torch

from training.metrics import NonFiniteLossError, StepLog, describe, read_records


def add(log: StepLog, step: int, loss: float) -> None:
    known = {"samples": step * 10, "lr": 0.1, "step_s": 0.5, "data_wait_s": 0.1}
    log.add(torch.tensor(loss), torch.tensor(2.0), step=step, **known)


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
    with pytest.raises(NonFiniteLossError, match="step 2"):
        log.flush()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == 2.0


def test_the_log_line_has_what_a_person_watches(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl", resumed_step=0)
    for step in (1, 2):
        add(log, step, 3.0)
    line = describe(log.flush(), 100, torch.device("cpu"))
    assert line.startswith("step 2/100 | samples 20 | loss 3.000 | lr 1.0e-01 | scale 7.4 | ")
    assert "20 pairs/s | data wait 20.0%" in line
    assert line.endswith("eta 49s")


def test_a_long_wait_for_data_names_what_it_waited_for(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl", resumed_step=0)
    known = {"samples": 10, "lr": 0.1, "step_s": 0.5, "data_busy_s": {"decode": 0.4}}
    for step, (wait, stage) in enumerate(((0.1, "decode"), (0.1, "read"), (0.2, "decode")), 1):
        log.add(
            torch.tensor(1.0), torch.tensor(2.0), step=step, data_wait_s=wait,
            data_bottleneck=stage, **known,
        )  # fmt: skip
    records = log.flush()
    assert "data wait 26.7% for decode | " in describe(records, 100, torch.device("cpu"))
    assert read_records(tmp_path / "metrics.jsonl") == records
