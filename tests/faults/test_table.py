"""What counts as survived."""

from __future__ import annotations

import json
import math

from tests.faults.processes import ROOT
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


def test_what_is_known_to_be_lost_is_not_hidden_by_what_is_unknown() -> None:
    cut_off = {**SOUND, "seed": 3, "problem": "TimeoutError: not reached", "lost": None}
    other = {**SOUND, "fault": "skip", "seed": 4, "skipped": "may not mount", "lost": None}
    injections = [SOUND, {**SOUND, "seed": 2, "problem": "other losses", "lost": 3}, cut_off, other]
    record = {"command": "", "environment": {"device": ""}, "injections": injections}
    page = table(record, summary(injections))
    assert "| kill | 3 | 1 | 3 and unknown | 0 | - | - |" in page
    assert "| **all** | **3** | **1** | **3 and unknown** | | | |" in page
    assert "- kill, seed 2: 'other losses; 3 samples lost or served twice'" in page


def test_the_page_in_the_docs_holds_the_table_of_its_record() -> None:
    results = ROOT / "docs" / "results"
    text = (results / "reliability-cpu" / "faults.json").read_text(encoding="utf-8")
    record = json.loads(text)
    page = (results / "reliability-cpu.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in table(record, summary(record["injections"])) if line.startswith("|")]
    assert [line for line in page if line.startswith("|")][: len(rows)] == rows


def test_samples_of_a_job_that_came_to_no_end_are_unknown() -> None:
    injections = [SOUND, {**SOUND, "seed": 2, "problem": "AssertionError: no end", "lost": None}]
    rows = summary(injections)
    assert [(row["injected"], row["survived"], row["lost"]) for row in rows] == [(2, 1, "unknown")]
    record = {"command": "", "environment": {"device": ""}, "injections": injections}
    assert "| **all** | **2** | **1** | **unknown** | | | |" in table(record, rows)
