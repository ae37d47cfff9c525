"""What the recipes' docstrings say is what their configurations are."""

from __future__ import annotations

import re
import shlex

import pytest

from tessera.recipes import RECIPES, clip, clipa, cluster_masking, find_recipe, flip, list_recipes
from tessera.tools.benchmarks.recipe_costs import recipe_cost
from tessera.training.command_line import parse
from tessera.training.config import TrainConfig
from tessera.training.stages import architecture, stages_of

PUBLISHED = [name for name in RECIPES if name not in ("demo", "flickr8k")]


def build(name: str) -> TrainConfig:
    return find_recipe(name).build()


def doc(name: str) -> str:
    return " ".join((find_recipe(name).build.__doc__ or "").split())


def peaks(config: TrainConfig) -> list[float]:
    return [s.config.optim.peak(s.config.batch_size) for s in stages_of(config)]


def check_words(name: str, words: str) -> None:
    config = parse([name, *shlex.split(words)], build, "").config
    assert stages_of(config)[-1].config.num_steps > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_docstrings_say_everything(name: str) -> None:
    for section in ("Data", "Command", "Hardware", "Cost", "Published", "Measured", "Differs"):
        assert f" {section}: " in doc(name), section


@pytest.mark.parametrize("name", PUBLISHED)
def test_commands_and_options_of_docstrings_parse(name: str) -> None:
    commands = re.findall(r"`(?:python|torchrun)[^`]*? train\.py ([^`]*)`", doc(name))
    assert commands
    assert all(words.split()[0] == name for words in commands)
    options = re.findall(r"`(--[^\s`]+ [^`]*)`", doc(name))
    for words in [command.partition(" ")[2] for command in commands] + options:
        check_words(name, words)


@pytest.mark.parametrize("module", [flip, cluster_masking, clipa, clip])
def test_options_of_module_docstrings_parse(module: object) -> None:
    text = " ".join((module.__doc__ or "").split())
    for words in re.findall(r"`(--[^\s`]+ [^`]*)`", text):
        check_words("cluster-rgb-03", words)


@pytest.mark.parametrize("name", PUBLISHED)
def test_costs_are_those_of_the_flop_model(name: str) -> None:
    cost = recipe_cost(build(name))
    said = f"{cost.flops / 1e18:,.1f} EFLOP, {cost.gpu_hours(300):,.0f} GPU-hours at 300 TFLOP/s"
    assert f"Cost: {said}" in doc(name)


def test_a_recipe_costs_what_its_stages_cost() -> None:
    """Half of the patches, and a fifth of a stage's length more, by hand."""
    whole, half = recipe_cost(build("clip")), recipe_cost(build("flip-50"))
    assert 0.5 < half.flops / whole.flops < 0.55  # captions cost the same
    both = recipe_cost(build("flip-50-scaled"))
    tuning = both.flops / both.pairs - half.flops / half.pairs
    share = (both.pairs - half.pairs) / both.pairs
    expected = (whole.flops / whole.pairs - half.flops / half.pairs) * share
    assert tuning == pytest.approx(expected, rel=1e-3)


def test_names_and_folders_are_the_recipes_own() -> None:
    configs = {name: recipe.build() for name, recipe in RECIPES.items()}
    assert all(config.recipe == name for name, config in configs.items())
    assert len({config.run_dir for config in configs.values()}) == len(configs)
    lines = list_recipes()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize(
    ("name", "rates", "batches"),
    [
        ("clip", [5e-4], [2048]),
        ("flip-50", [5e-4], [2048]),
        ("flip-50-scaled", [1e-3, 5e-6], [4096, 2048]),
        ("flip-75-scaled", [2e-3, 5e-6], [8192, 2048]),
        ("flip-75-laion", [1.024e-3, 2.56e-6], [65_536, 16_384]),
        ("clipa-b16", [2.048e-3, 2.56e-5], [65_536, 8_192]),
        ("clipa-l16", [1.024e-3, 2.24e-5], [32_768, 7_168]),
        ("clipa-h14", [2.048e-3, 5.12e-5, 6.4e-6], [65_536, 32_768, 16_384]),
    ],
)
def test_rates_follow_the_published_rule(name: str, rates: list[float], batches: list[int]) -> None:
    config = build(name)
    assert peaks(config) == pytest.approx(rates)
    assert [s.config.batch_size for s in stages_of(config)] == batches


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("clip", [197]),
        ("flip-50", [99]),
        ("flip-75-scaled", [50, 197]),
        ("cluster-rgb-03", [99]),
        ("clipa-resize", [50, 197]),
        ("clipa-grid", [50, 197]),
        ("clipa-block", [50, 197]),
        ("clipa-b16", [50, 197]),
        ("clipa-l16", [17, 197]),
        ("clipa-l16-t8", [37, 197]),
        ("clipa-h14", [37, 180, 346]),
    ],
)
def test_image_tokens_are_the_published_ones(name: str, tokens: list[int]) -> None:
    """With the class token, a mean where images differ."""
    found = []
    for stage in stages_of(build(name)):
        patches = architecture(stage.config).vision.num_patches
        visible = stage.config.mask.build().num_visible(100, patches)
        assert visible is not None
        found.append(visible // 100 + 1)
    assert found == tokens


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (["cluster-rgb-03", "--mask.mode", "fill"], 137),
        (["cluster-rgb-05", "--mask.mode", "fill", "--mask.threshold", "0.5"], 98),
    ],
)
def test_fill_keeps_the_released_codes_counts(words: list[str], tokens: int) -> None:
    mask = parse(words, build, "").config.mask
    assert mask.build().num_visible(10, 196) == 10 * tokens
    assert mask.threshold in (None, 0.5)


def test_text_lengths_of_clipa() -> None:
    lengths = {
        name: [architecture(s.config).text.context_length for s in stages_of(build(name))]
        for name in ("clipa-b16", "clipa-l16", "clipa-l16-t8", "clipa-h14")
    }
    assert lengths == {
        "clipa-b16": [16, 16],
        "clipa-l16": [16, 16],
        "clipa-l16-t8": [8, 32],
        "clipa-h14": [8, 32, 32],
    }
    assert build("clipa-l16").data.text_reduction == "syntax"
