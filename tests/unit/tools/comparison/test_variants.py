from __future__ import annotations

from pathlib import Path

import pytest

from tessera.pipeline.masking import MaskConfig
from tessera.recipes import find_recipe
from tessera.tools.comparison.variants import choose_variants, find_variant, read_variants
from tessera.training.command_line import parse
from tessera.training.config import TrainConfig, to_json
from tessera.training.config_differences import differences


def config_of(recipe: str, words: tuple[str, ...]) -> TrainConfig:
    return parse([recipe, *words], lambda name: find_recipe(name).build(), "").config


@pytest.mark.parametrize("base", ["demo", "flickr8k", "cluster-rgb-05"])
@pytest.mark.parametrize(
    "name", ["clip", "flip-50", "flip-75", "cluster-rgb-03", "cluster-rgb-05", "cluster-embedding"]
)
def test_a_variant_gives_its_mask_and_nothing_else(name: str, base: str) -> None:
    variant = find_variant(name, base)
    config = config_of(variant.recipe, variant.words)
    assert config.mask.build() == find_recipe(name).build().mask.build()
    assert config.mask.kind == find_recipe(name).build().mask.kind
    changed = differences(to_json(find_recipe(base).build()), to_json(config))
    assert all(line.startswith("mask.") for line in changed)


def test_filling_is_the_released_codes_way() -> None:
    third, half = (find_variant(name, "demo") for name in ("fill-03", "fill-05"))
    assert config_of("demo", third.words).mask == MaskConfig(kind="cluster", mode="fill")
    mask = config_of("demo", half.words).mask
    assert (mask.mode, mask.threshold, mask.min_mask_ratio) == ("fill", 0.5, 0.5)


def test_without_a_base_a_variant_is_its_own_recipe() -> None:
    variant = find_variant("fill-03", "")
    assert variant.recipe == "cluster-rgb-03"
    assert config_of(variant.recipe, variant.words).mask.mode == "fill"


def test_a_recipe_of_more_than_a_mask_does_not_carry_over() -> None:
    with pytest.raises(ValueError, match=r"(?s)flip-50-scaled differs.*batch_size: was 2048"):
        find_variant("flip-50-scaled", "demo")
    with pytest.raises(ValueError, match="there is no recipe 'clap'"):
        find_variant("clap", "demo")


def test_a_file_adds_words_to_a_variant(tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text('[twice]\nlike = "flip-50"\nwords = "--batch-size 256"\n', "utf-8")
    (variant,) = read_variants(file, "demo")
    config = config_of(variant.recipe, variant.words)
    assert (variant.name, config.batch_size, config.mask.kind) == ("twice", 256, "random")


@pytest.mark.parametrize(
    "text", ["[a", "[a]\n", "a = 1\n", '[a]\nlike = "clip"\nlength = 3\n', "[a]\nlike = 3\n"]
)
def test_a_file_that_says_something_else_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"more\.toml"):
        read_variants(file, "demo")


def test_variants_of_a_file_can_be_named_and_be_the_baseline(tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text('[twice]\nlike = "flip-50"\n[thrice]\nlike = "flip-75"\n', "utf-8")

    def names(*chosen: str) -> list[str]:
        return [variant.name for variant in choose_variants(chosen, file, "demo")]

    assert names("twice", "clip") == ["twice", "clip", "thrice"]
    assert names("clip", "thrice", "twice") == ["clip", "thrice", "twice"]
    assert names() == ["twice", "thrice"]
    with pytest.raises(ValueError, match="there is no recipe 'fourfold'"):
        names("fourfold")
    file.write_text('[clip]\nlike = "flip-50"\n', "utf-8")
    with pytest.raises(ValueError, match=r"\[clip\] is the name of a variant already"):
        names("clip")
