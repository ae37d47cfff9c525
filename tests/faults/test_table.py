"""What counts as survived."""

from __future__ import annotations

import math

from tests.faults.table import summary, table

SOUND = {
    "fault": "kill",
    "seed": 1,
    "skipped": "",
    "problem": "",
    "times": 1,
    "said": "",
    "ended_s": math.nan,
    "back_s": math.nan,
    "lost": 0,
    "replaced": 0,
}


def test_a_fault_that_lost_a_sample_is_not_survived() -> None:
    injections = [SOUND, {**SOUND, "seed": 2, "lost": 3}]
    rows = summary(injections)
    assert [(row["injected"], row["survived"], row["lost"]) for row in rows] == [(2, 1, 3)]
    record = {"command": "", "environment": {"device": ""}, "injections": injections}
    assert any("seed 2" in line and "3 samples" in line for line in table(record, rows))


def test_samples_of_a_job_that_came_to_no_end_are_unknown() -> None:
    injections = [SOUND, {**SOUND, "seed": 2, "problem": "AssertionError: no end", "lost": None}]
    rows = summary(injections)
    assert [(row["injected"], row["survived"], row["lost"]) for row in rows] == [(2, 1, "unknown")]
    record = {"command": "", "environment": {"device": ""}, "injections": injections}
    assert "| **all** | **2** | **1** | **unknown** | | | |" in table(record, rows)
