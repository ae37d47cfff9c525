"""Configurations are checked, documented, and compared field by field."""

import dataclasses
import inspect
from dataclasses import replace

import pytest

from tessera.model import LossConfig
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.masking import MaskConfig
from tessera.recipes import RECIPES, find_recipe
from tessera.training.config import (
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    to_json,
)
from tessera.training.config_differences import differences
from tessera.training.stages import stages_of

ALL = (TrainConfig, DataConfig, OptimConfig, EvaluationConfig, MaskConfig, CropConfig)


def small() -> TrainConfig:
    return TrainConfig(
        recipe="demo", run_dir="x", model="tessera-demo", total_samples=1000, batch_size=100
    )


@pytest.mark.parametrize("config_class", ALL)
def test_every_field_says_what_it_means(config_class: type) -> None:
    bases = [base for base in config_class.__mro__ if dataclasses.is_dataclass(base)]
    source = [line for base in bases for line in inspect.getsource(base).splitlines()]
    for field in dataclasses.fields(config_class):
        line = next(i for i, text in enumerate(source) if text.startswith(f"    {field.name}:"))
        assert source[line + 1].lstrip().startswith('"""'), f"{config_class.__name__}.{field.name}"


def test_there_are_few_enough_fields_to_know() -> None:
    assert sum(len(dataclasses.fields(c)) for c in ALL) < 100


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_builds_and_carries_its_command(name: str) -> None:
    recipe = find_recipe(name)
    config = recipe.build()
    assert config.recipe == name
    assert config.num_steps > 0
    assert "train.py" in (recipe.build.__doc__ or "")


def test_a_wrong_recipe_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'flickr8k'"):
        find_recipe("flicker8k")


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="less than one batch"):
        replace(small(), total_samples=10)
    with pytest.raises(ValueError, match="batch_size"):
        replace(small(), batch_size=0)
    with pytest.raises(ValueError, match="learning_rate"):
        OptimConfig(learning_rate=0)


def test_only_what_changes_the_run_counts_as_a_difference() -> None:
    before = to_json(small())
    assert differences(before, to_json(small())) == []
    free = replace(small(), log_every=7, data=DataConfig(num_threads=5), num_threads=1)
    assert differences(before, to_json(free)) == []
    staged = replace(small(), stages=(StageConfig(total_samples=200, optim=OptimConfig()),))
    chunked = replace(staged, stages=(replace(staged.stages[0], accumulation=2),))
    assert differences(to_json(staged), to_json(chunked)) == []
    other = replace(small(), seed=3, mask=MaskConfig(kind="random"))
    assert differences(before, to_json(other)) == [
        "mask.kind: was none, now random",
        "seed: was 0, now 3",
    ]


def test_several_texts_need_a_loss_that_takes_them() -> None:
    data = DataConfig(captions=("caption=1", "laclip=4"), every_text=True)
    assert replace(small(), data=data).data.every_text
    with pytest.raises(ValueError, match=r"loss\.kind siglip takes one"):
        replace(small(), data=data, loss=LossConfig(kind="siglip"))


def test_a_model_that_reads_tokens_takes_no_text_encoder() -> None:
    """Told at the start, and not by the evaluation at the end of the run."""
    with pytest.raises(ValueError, match=r"evaluation\.text_encoder is for models"):
        replace(small(), evaluation=EvaluationConfig(text_encoder="llm"))


def test_a_batch_of_one_pair_is_refused_as_it_has_no_negatives() -> None:
    """It used to train to the end with a loss and a gradient of 0."""
    for change in ({"batch_size": 1}, {"batch_size": 1, "loss": LossConfig(kind="siglip")}):
        with pytest.raises(ValueError, match="no negatives"):
            replace(small(), **change)
    stage = StageConfig(total_samples=10, optim=OptimConfig(), batch_size=1)
    with pytest.raises(ValueError, match="no negatives"):
        stages_of(replace(small(), stages=(stage,)))
