"""Budgets are read off the records as the benchmarks write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.acceptance.budgets import judge

RESULTS = Path(__file__).resolve().parents[4] / "docs" / "results"


def record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def words(records: dict[str, dict[str, Any]]) -> dict[str, tuple[float | None, str]]:
    return {verdict.budget.what: (verdict.value, verdict.word) for verdict in judge(records)}


def test_records_of_real_benchmarks() -> None:
    step = record("training-cpu/compare-vit-b-16.json")
    found = words(
        {"step-vit-b-16": step, "masks": record("masks-cpu/batch-sizes.json")}
        | {"end-to-end-cpu-decode": {"pairs_per_s": 7000, "data_wait_share": 0.05}}
        | {"end-to-end-cuda-decode": {"pairs_per_s": 6500, "data_wait_share": 0.01}}
    )
    over = "the same step over open_clip unmasked, times"
    assert found[over] == (step["ratios"]["ours_50"]["open_clip"]["median"], "kept")
    rate = next(value for what, value in found.items() if "end to end" in what)
    assert rate == (7000, "kept")
    assert found["its data wait, % of the step"] == (5, "missed"), "of the faster of the two"
    share = found["cluster mask, % of that step"][0]
    assert share is not None
    assert 0.001 < share < 1


def test_what_was_not_measured_is_not_kept() -> None:
    assert {word for _, word in words({}).values()} == {"not measured"}
    with pytest.raises(TypeError):
        judge({"masks": {"masks": None}})
