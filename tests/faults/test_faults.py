"""The short form of `python -m tests.faults`: a few kinds of fault, one injection of each."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.pipeline.index import open_index
from tests.faults import data_faults, tool_faults
from tests.faults.__main__ import inject, main
from tests.faults.bench import BATCH, NUM_STEPS, STEPS_OF_PASS, Bench, check_order
from tests.faults.outcome import Fault, Outcome, line_with
from tests.faults.processes import running
from tests.faults.soak_report import slope, verdict_of
from tests.faults.table import summary, table

SHORT: list[Fault] = [
    data_faults.checkpoint_rotten,
    tool_faults.captions_worker_killed,
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.__name__)
def test_faults_are_survived(fault: Fault, bench: Bench, tmp_path: Path) -> None:
    outcome = fault(bench, random.Random(f"{fault.__name__}/1"), tmp_path)
    assert outcome.lost == 0
    assert not math.isnan(outcome.back_s)


def test_every_flipped_bit_of_an_index_is_noticed(bench: Bench) -> None:
    index, choose = bench.index, random.Random(5)
    open_index(index).check_files()
    served = [path for path in sorted(index.rglob("*.arrow")) if path.parent.name != "scans"]
    for path in served:
        original = path.read_bytes()
        for _ in range(8):
            data_faults.flip(path, choose)
            with pytest.raises(ValueError, match=r"damaged.*index_shards\.py"):
                open_index(index).check_files()
            path.write_bytes(original)


def test_what_is_not_survived_is_recorded(bench: Bench, tmp_path: Path) -> None:
    def unlucky(_bench: Bench, _choose: random.Random, folder: Path) -> Outcome:
        (folder / "left").write_text("", encoding="utf-8")
        line_with("all is well", "failed")
        return Outcome()

    good = inject("good", lambda *_: Outcome(times=2, back_s=1.5), 1, bench, tmp_path)
    bad = inject("bad", unlucky, 1, bench, tmp_path)
    assert list(tmp_path.iterdir()) == [], "the next fault finds an empty folder"
    rows = summary([good, bad])
    assert [(row["injected"], row["survived"]) for row in rows] == [(2, 2), (1, 0)]
    record = {"command": "", "environment": {"device": ""}, "injections": [good, bad]}
    page = "\n".join(table(record, rows))
    assert "| good | 2 | 2 | 0 | 0 | - | 1.5 (1.5) |" in page
    assert "no line names ('failed',)" in page


def recorded(run_dir: Path, ids: dict[int, list[int]]) -> Path:
    """A run folder that holds nothing but the samples of its steps."""
    run_dir.mkdir()
    lines = [json.dumps({"step": step, "ids": row}) + "\n" for step, row in ids.items()]
    (run_dir / "sample_ids.jsonl").write_text("".join(lines), encoding="utf-8")
    return run_dir


def test_samples_of_a_run_that_ends_wrong_are_counted(bench: Bench, tmp_path: Path) -> None:
    places = [divmod(step, STEPS_OF_PASS)[1] * BATCH for step in range(NUM_STEPS)]
    ids = {step: [*range(first, first + BATCH)] for step, first in enumerate(places, 1)}
    whole = recorded(tmp_path / "whole", ids)
    assert check_order(whole, whole) == 0
    twice = recorded(tmp_path / "twice", {**ids, 2: [*ids[1][:3], *ids[2][3:]]})
    short = recorded(tmp_path / "short", {step: ids[step] for step in range(1, 9)})
    (tmp_path / "work").mkdir()

    def injected(run_dir: Path) -> dict[str, Any]:
        def held(*_: object) -> Outcome:
            return Outcome(lost=check_order(run_dir, whole))

        return inject("wrong", held, 1, bench, tmp_path / "work")

    wrong, cut_off = injected(twice), injected(short)
    assert (wrong["problem"], wrong["lost"]) == ("another order of samples", 3)
    assert cut_off["problem"].startswith("AssertionError: steps [1, ")
    assert cut_off["lost"] is None


@pytest.mark.parametrize("error", [AssertionError("no end"), KeyError("loss")], ids=repr)
def test_whatever_is_not_survived_is_recorded_and_ends_with_1(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> Outcome:
        raise error

    monkeypatch.setattr(
        "tests.faults.__main__.FAULTS", {"bad": fails, "good": lambda *_: Outcome()}
    )
    monkeypatch.setattr(sys, "argv", ["tests.faults", "--out", str(tmp_path / "new")])
    assert main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == '{"injected": 2, "survived": 1}'
    injections = json.loads((tmp_path / "new" / "faults.json").read_text())["injections"]
    assert [(each["fault"], each["lost"]) for each in injections] == [("bad", None), ("good", 0)]
    assert "| bad | 1 | 0 | unknown |" in (tmp_path / "new" / "faults.md").read_text()


def test_wrong_use_of_the_driver_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tests.faults", "--out", str(tmp_path / "new"), "--only", "earthquake"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "SIGKILL of training" in capsys.readouterr().err


def test_a_job_is_found_and_ended_with_all_that_it_started() -> None:
    """Also a process whose parent is gone, in a session of its own."""
    child = "import time; time.sleep(60)"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], "
    with running([sys.executable, "-c", start + "start_new_session=True)"]) as job:
        assert job.wait(20) == 0
        (orphan,) = job.orphans(0.2)
        usage = job.usage()
        assert usage.num_processes == 1
        assert 0 < usage.own_mib <= usage.pss_mib <= usage.rss_mib
    deadline = time.monotonic() + 5
    while Path(f"/proc/{orphan}").exists():  # until whoever adopted it has taken note of its end
        assert time.monotonic() < deadline
        time.sleep(0.05)


def drifting(per_hour: float, *, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of three lives of an hour, at levels of their own, each minute with noise."""
    noise = np.random.default_rng(seed)
    lives = np.repeat(np.arange(3), 60)
    hours = np.tile(np.arange(60) / 60, 3)
    values = 700.0 + 40 * lives + per_hour * hours + noise.normal(0, 3, 180)
    return hours, values, lives


@pytest.mark.parametrize("per_hour", [0.0, 25.0, -10.0])
def test_slopes_are_found_whatever_the_level_of_a_life(per_hour: float) -> None:
    found = slope(*drifting(per_hour))
    low, high = found.interval
    assert low < per_hour < high
    assert 0.3 < found.error < 3


def test_errors_of_slopes_are_as_large_as_slopes_scatter() -> None:
    """Against the scatter of 200 soaks; blocks of ten minutes leave some looseness."""
    found = [slope(*drifting(0.0, seed=seed)) for seed in range(200)]
    scatter = np.std([each.per_hour for each in found])
    assert np.mean([each.error for each in found]) == pytest.approx(scatter, rel=0.25)


def test_few_counts_say_nothing() -> None:
    hours, values, lives = drifting(0.0)
    with pytest.raises(ValueError, match="soak longer"):
        slope(hours[:20], values[:20], lives[:20])


@pytest.mark.parametrize(
    ("per_hour", "change", "passed"),
    [
        (0.0, {}, True),
        (60.0, {}, False),
        (0.0, {"orphans": 1}, False),
        (0.0, {"partial_left": [".metrics.jsonl.partial-7"]}, False),
        (0.0, {"end": "by itself"}, False),
    ],
)
def test_a_soak_is_judged_by_its_rules(per_hour: float, change: dict, *, passed: bool) -> None:
    hours, values, lives = drifting(per_hour)
    counts = [
        {
            "age_min": 60 * hour,
            "life": int(life),
            "num_shm": 0,
            "usage": {"own_mib": value, "num_threads": 9, "num_handles": 12},
        }
        for hour, value, life in zip(hours, values, lives, strict=True)
    ]
    life = {"orphans": 0, "shm_left": 0, "temporary_left": 0, "partial_left": [], "end": "SIGTERM"}
    order = {"lost": 0, "twice": 0, "missing_steps": 0, "num_passes": 4}
    record = {"counts": counts, "lives": [life, life | change], "order": order}
    assert verdict_of(record)["passed"] is passed
