from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.tools.comparison.markdown import markdown
from tessera.tools.comparison.page import write_page
from tessera.tools.comparison.plan import Plan
from tessera.tools.comparison.reading import reading
from tessera.tools.comparison.results import Cell, Table, as_json, tables_of
from tessera.tools.comparison.runs import FinishedRun, read_run
from tessera.tools.comparison.statistics import Spread
from tests.chromium import Browser

GAIN = {"clip": 0.0, "flip-50": -0.05, "cluster-rgb-03": 0.01}
NOISE = {0: 0.00, 1: 0.06, 2: 0.03}
"""Of a seed, shared by all variants."""
OWN_NOISE = {"clip": 0, "flip-50": 0.001, "cluster-rgb-03": 0.02}
"""Times the seed: of one variant alone."""


@pytest.fixture
def finished(plan: Plan, finish_run: Callable[..., None]) -> dict[Path, FinishedRun]:
    found = {}
    for run in plan.runs:
        own = OWN_NOISE[run.variant] * (run.seed - 1)
        top1 = 0.3 + NOISE[run.seed] + GAIN[run.variant] + own
        seconds = 1.0 if run.variant == "clip" else 0.6
        finish_run(run, top1=top1, recall=0.2, step_s=seconds)
        found[run.folder] = read_run(run)
    return found


def without(finished: dict[Path, FinishedRun], *parts: str) -> dict[Path, FinishedRun]:
    return {
        path: run for path, run in finished.items() if not all(part in path.name for part in parts)
    }


def test_a_table_has_means_spreads_and_paired_differences(
    plan: Plan, finished: dict[Path, FinishedRun]
) -> None:
    samples, compute = tables_of(plan, finished)
    clip, flip, cluster = samples.rows
    assert clip.cells["top-1"].spread.mean == pytest.approx(0.33)
    assert clip.cells["top-1"].spread.deviation == pytest.approx(0.03)
    assert clip.cells["top-1"].difference is None
    difference = flip.cells["top-1"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(-0.05)
    assert difference.interval == pytest.approx((-0.05 - 0.002484, -0.05 + 0.002484), abs=1e-6)
    assert flip.relative_seconds == pytest.approx(0.6)
    assert flip.relative_flops == pytest.approx(flip.flops / clip.flops)
    assert compute.rows[1].relative_flops == pytest.approx(1.0, abs=0.1)
    assert compute.rows[1].samples > samples.rows[1].samples
    assert flip.cells["top-1"].flops_a_point(flip.flops) == pytest.approx(flip.flops / 18)
    assert cluster.cells["mean recall"].difference is not None


def test_what_is_said_follows_from_the_intervals(
    plan: Plan, finished: dict[Path, FinishedRun]
) -> None:
    said = reading(tables_of(plan, finished))
    assert said[0].replace("\N{MINUS SIGN}", "-") == (
        "At equal samples, top-1: flip-50 is 5.0 points below clip (95% interval -5.2 to -4.8); "
        "no difference to clip beyond the spread of the seeds for cluster-rgb-03 (-4.0 to +6.0)."
    )
    assert said[1].startswith("At equal samples, mean recall: no difference to clip beyond")
    assert "flip-50 0.5" in said[2]
    assert "and 0.60" in said[2]
    assert said[-1].startswith("2 of 8 comparisons lie beyond the spread of 3 seeds; ")
    assert "0.4 of 8 would by chance alone" in said[-1]


def guessing(
    plan: Plan, finish_run: Callable[..., None], top1: float, recall: float
) -> list[Table]:
    """The tables of variants that score as given, a little apart from seed to seed."""
    found = {}
    for run in plan.runs:
        apart = 0.002 * (run.seed - 1)
        finish_run(run, top1=top1 + apart, recall=recall + apart)
        found[run.folder] = read_run(run)
    return tables_of(plan, found)


@pytest.mark.parametrize("top1", [0.1, 0.08, 0.103])
def test_no_cost_of_a_point_is_told_at_chance(
    top1: float, plan: Plan, finish_run: Callable[..., None]
) -> None:
    tables = guessing(plan, finish_run, top1, 0.16 / 3)
    assert reading(tables)[0].startswith("No variant is above chance")
    cell = tables[0].rows[0].cells["top-1"]
    assert cell.flops_a_point(1e12) is None
    plain = as_json(tables)[0]["variants"]["clip"]["scores"]["top-1"]
    assert (plain["above_chance"], plain["flops_a_point_above_chance"]) == (False, None)
    text = markdown(tables, reading(tables), ["python tools/compare.py"])
    assert text.splitlines()[2].startswith("- No variant is above chance")


def test_a_score_at_chance_beside_another_is_named(
    plan: Plan, finish_run: Callable[..., None]
) -> None:
    said = reading(guessing(plan, finish_run, 0.5, 0.16 / 3))
    assert said[0] == "At equal samples, mean recall: no variant is above chance (5.33%)."
    assert "At equal compute, mean recall" in said[1]


def test_few_questions_do_not_lift_a_score_above_chance() -> None:
    def above(num_queries: int, *values: float) -> bool:
        return Cell(
            spread=Spread(values=values),
            difference=None,
            chance=0.1,
            n=num_queries,
            is_main=True,
        ).is_above_chance

    assert not above(100, 0.15)  # 1.7 standard errors of guessing
    assert above(1000, 0.15)
    assert above(0, 0.15), "a record from before the number was kept"
    assert not above(1000, 0.15, 0.2, 0.11), "the seeds lie too far apart"


def test_missing_runs_leave_the_rest_comparable(
    plan: Plan, finished: dict[Path, FinishedRun]
) -> None:
    fewer = without(without(finished, "flip-50", "seed0"), "flip-50", "seed2")
    samples = tables_of(plan, fewer)[0]
    assert [len(row.runs) for row in samples.rows] == [3, 1, 3]
    assert "fewer than two seeds to compare for flip-50" in reading([samples])[0]
    (no_baseline, _) = tables_of(plan, without(finished, "clip"))
    assert reading([no_baseline]) == ["At equal samples: no run of clip, the baseline, finished."]
    only = {path: run for path, run in finished.items() if "clip" in path.name}
    assert reading(tables_of(plan, only)[1:]) == [
        "At equal compute: no run besides those of clip finished."
    ]
    assert reading(tables_of(plan, {})) == [
        *reading([no_baseline]),
        "At equal compute: no run of clip, the baseline, finished.",
    ]


def test_pairs_are_made_of_seeds_that_both_have(
    plan: Plan, finished: dict[Path, FinishedRun]
) -> None:
    uneven = without(without(finished, "clip", "seed0"), "flip-50", "seed2")
    flip = tables_of(plan, uneven)[0].rows[1]
    difference = flip.cells["top-1"].difference
    assert difference is not None
    assert difference.values == pytest.approx((-0.05,))


def test_markdown_and_json_hold_the_same_figures(
    plan: Plan, finished: dict[Path, FinishedRun]
) -> None:
    tables = tables_of(plan, finished)
    text = markdown(tables, reading(tables), ["python tools/compare.py"])
    text = text.replace("\N{MINUS SIGN}", "-")
    assert "| flip-50 | 3 | 640 | 0.5" in text
    assert "| 28.0 ± 3.1 | **-5.0 (-5.2 to -4.8)** |" in text
    plain = json.loads(json.dumps(as_json(tables), allow_nan=False))
    flip = plain[0]["variants"]["flip-50"]
    assert flip["scores"]["top-1"]["difference"]["beyond_spread"] is True
    assert flip["seeds"] == [0, 1, 2]
    assert len(flip["commands"]) == 3


@pytest.mark.parametrize("left", ["everything", "one seed", "nothing"])
def test_the_page_shows_what_there_is(
    left: str, plan: Plan, finished: dict[Path, FinishedRun], tmp_path: Path
) -> None:
    kept = {
        "everything": finished,
        "one seed": {path: run for path, run in finished.items() if "seed1" in path.name},
        "nothing": {},
    }[left]
    missing = [(run.folder.name, "<no> memory") for run in plan.runs if run.folder not in kept]
    text = page_of(tables_of(plan, kept), missing, tmp_path)
    assert ("complete" in text) == (left == "everything")
    assert ("&lt;no&gt; memory" in text) == (left != "everything")
    assert text.count('class="chart"') == (0 if left == "nothing" else 6)
    assert ("0 = clip" in text) == (left == "everything"), "zero is explained on the bars' scale"
    assert text.count('class="interval clear"') == (2 if left == "everything" else 0)
    assert "nan" not in text.lower()


def page_of(tables: list[Table], missing: list[tuple[str, str]], folder: Path) -> str:
    path = folder / "comparison.html"
    write_page(path, "Masks", tables, reading(tables), ["python tools/compare.py"], missing)
    return path.read_text("utf-8")


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, False)])
def test_the_page_is_readable_in_a_browser(
    width: int,
    dark: bool,
    browser: Browser,
    plan: Plan,
    finished: dict[Path, FinishedRun],
    tmp_path: Path,
) -> None:
    page_of(tables_of(plan, finished), [("clip-640-seed9", "disk full")], tmp_path)
    seen = browser.look((tmp_path / "comparison.html").as_uri(), width=width, dark=dark)
    assert seen.complaints == []
    assert seen.wider == 0
    assert seen.drawn > 6 * 3  # charts, variants
    assert "flip-50 is 5.0 points below clip" in seen.text
    assert seen.paper == ("rgb(23, 23, 21)" if dark else "rgb(251, 250, 247)")
