from __future__ import annotations

from pathlib import Path

import pytest

from tessera.recipes import find_recipe
from tessera.recipes.clip import clip as clip_recipe
from tessera.tools.benchmarks.recipe_costs import recipe_cost
from tessera.tools.comparison.plan import Plan, flops_of, make_plan
from tessera.tools.comparison.variants import Variant, find_variant
from tessera.training.command_line import parse


def test_equal_samples_are_equal_and_seeds_pair_the_runs(plan: Plan) -> None:
    runs = plan.forms["samples"]
    assert [run.samples for run in runs] == [640] * 9
    assert [(run.variant, run.seed) for run in runs[:4]] == [
        ("clip", 0), ("flip-50", 0), ("cluster-rgb-03", 0), ("clip", 1)
    ]  # fmt: skip
    assert [run.config.seed for run in runs] == [run.seed for run in runs]


def test_equal_compute_spends_the_baselines_operations_in_whole_steps(plan: Plan) -> None:
    budget = plan.forms["compute"][0].flops
    for run in plan.forms["compute"]:
        ((_, a_pair),) = flops_of(run.config)
        assert run.samples % 32 == 0
        assert budget - 32 * a_pair < run.flops <= budget * (1 + 1e-9)
        assert run.config.optim.warmup_pairs(run.samples) / run.samples == pytest.approx(
            0.1, abs=0.01
        )


def test_a_mask_of_half_the_patches_costs_a_bit_more_than_half(plan: Plan) -> None:
    clip, flip, cluster = (run.flops for run in plan.forms["samples"][:3])
    assert 0.5 < flip / clip < 0.6
    assert flip == cluster


def test_distillation_and_self_distillation_are_counted(coloured_index: Path) -> None:
    def costs(*words: str) -> list[float]:
        given = ["llm2clip-distilled", "--data.train", str(coloured_index), *words]
        config = parse(given, lambda name: find_recipe(name).build(), "").config
        return [cost for _, cost in flops_of(config)]

    adapter, trained = costs("--image-side.self-distillation", "0")
    assert 0 < adapter < 0.15 * trained, "the first stage reads no image"
    same, kept = costs("--image-side.self-distillation", "1", "--optim.ema-samples", "1000")
    assert same == adapter
    assert 1.2 < kept / trained < 1 / 3 + 1, "one more forward pass of the image tower"


def test_one_function_counts_for_recipes_and_comparisons(coloured_index: Path) -> None:
    words = ["flip-50-scaled", "--data.train", str(coloured_index)]
    config = parse(words, lambda name: find_recipe(name).build(), "").config
    recipes, own = recipe_cost(config), flops_of(config)
    assert recipes.pairs == sum(pairs for pairs, _ in own)
    assert recipes.flops == pytest.approx(sum(pairs * each for pairs, each in own), rel=0.1)


def test_the_baselines_runs_serve_both_forms(plan: Plan) -> None:
    folders = [run.folder for run in plan.runs]
    assert len(folders) == len(set(folders)) == 9 + 6
    assert plan.baseline == "clip"


def test_the_command_repeats_the_run(plan: Plan) -> None:
    run = plan.forms["compute"][2]
    assert run.command.startswith("python train.py demo --mask.kind cluster")
    assert f"--run-dir {run.folder}" in run.command


def test_recipes_of_other_lengths_see_the_baselines_pairs(
    coloured_index: Path, tmp_path: Path
) -> None:
    words = ["--data.train", str(coloured_index), "--batch-size", "32"]
    longer = Variant(name="longer", recipe="demo", words=("--total-samples", "1280"))
    tuned = Variant(name="tuned", recipe="flip-50-scaled")
    clip = Variant(name="clip", recipe="clip")
    plan = make_plan([clip, longer, tuned], (0,), ("samples",), words, tmp_path)
    totals = [r.config.total_samples + sum(s.total_samples for s in r.config.stages)
              for r in plan.runs]  # fmt: skip
    assert totals == [clip_recipe().total_samples] * 3
    assert plan.runs[2].config.stages == find_recipe("flip-50-scaled").build().stages
    short = Variant(name="short", recipe="demo", words=("--total-samples", "640"))
    with pytest.raises(ValueError, match="nothing is left for its first stage"):
        make_plan([short, tuned], (0,), ("samples",), words, tmp_path)


def test_what_cannot_be_compared_is_refused(coloured_index: Path, tmp_path: Path) -> None:
    words = ["--data.train", str(coloured_index)]
    clip, flip = (find_variant(name, "demo") for name in ("clip", "flip-50"))

    def plan_of(*variants: Variant, seeds: tuple[int, ...] = (0,), form: str = "samples") -> Plan:
        return make_plan(variants, seeds, (form,), words, tmp_path)  # pyright: ignore[reportArgumentType]

    with pytest.raises(ValueError, match="at least two variants"):
        plan_of(clip)
    with pytest.raises(ValueError, match="must differ"):
        plan_of(clip, clip)
    with pytest.raises(ValueError, match="must differ"):
        plan_of(clip, flip, seeds=(1, 1))
    with pytest.raises(ValueError, match="a variant's name, not a/b"):
        plan_of(clip, Variant(name="a/b", recipe="demo"))
    tuned = Variant(name="tuned", recipe="flip-50-scaled")
    with pytest.raises(ValueError, match="several stages"):
        plan_of(clip, tuned, form="compute")
