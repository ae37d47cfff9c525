"""What the stages of a run are, where each starts, and how positions are carried over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tessera.model import build_clip, open_clip_weights
from tessera.model.positions import resize_image_positions
from tessera.pipeline.masking import MaskConfig
from tessera.training.config import (
    EvaluationConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    to_json,
)
from tessera.training.config_differences import differences
from tessera.training.stages import architecture, fit_positions, stage_at, stages_of
from tessera.training.tower_config import ImageSideConfig, TextSideConfig

FLIP = TrainConfig(
    recipe="demo",
    run_dir="x",
    model="tessera-demo",
    total_samples=1000,
    batch_size=96,
    seed=7,
    mask=MaskConfig(kind="random", mask_ratio=0.75),
    optim=OptimConfig(learning_rate=4e-6, base_batch_size=256),
    stages=(
        StageConfig(total_samples=320, batch_size=32, optim=OptimConfig(learning_rate=4e-8)),
        StageConfig(
            total_samples=200,
            optim=OptimConfig(ema_samples=50),
            mask=MaskConfig(kind="random", mask_ratio=0.3),
            image_size=128,
            context_length=40,
            crop_scale=(0.4, 1.0),
            text_reduction="block",
        ),
    ),
    evaluation=EvaluationConfig(ema=True),
)


def test_each_stage_is_a_run_that_starts_where_the_last_one_ended() -> None:
    first, tuned, larger = stages_of(FLIP)
    assert [s.first_step for s in (first, tuned, larger)] == [0, 10, 20]
    assert [s.first_sample for s in (first, tuned, larger)] == [0, 960, 1280]
    optim = replace(FLIP.optim, warmup_samples=FLIP.optim.warmup_pairs(FLIP.total_samples))
    alone = replace(FLIP, stages=(), evaluation=EvaluationConfig(), optim=optim)
    assert first.config == alone
    assert tuned.config.mask.kind == "none"
    assert (tuned.config.batch_size, tuned.config.num_steps) == (32, 10)
    assert tuned.config.optim.learning_rate == 4e-8
    assert larger.config.data.crop.scale == (0.4, 1.0)
    assert [s.config.data.text_reduction for s in stages_of(FLIP)] == ["truncate"] * 2 + ["block"]
    assert larger.config.data.crop.ratio == FLIP.data.crop.ratio
    assert larger.config.batch_size == 96
    assert larger.config.evaluation.ema
    assert len({s.config.seed for s in (first, tuned, larger)}) == 3
    assert (larger.is_last, larger.name, tuned.samples(3)) == (True, "stage 3/3", 960 + 96)


def test_the_steps_done_say_which_stage_goes_on() -> None:
    numbers = [stage_at(FLIP, steps).number for steps in (0, 9, 10, 19, 20, 21, 22)]
    assert numbers == [1, 1, 2, 2, 3, 3, 3]


def test_a_run_of_one_stage_is_itself() -> None:
    optim = replace(FLIP.optim, warmup_samples=64)
    alone = replace(FLIP, stages=(), evaluation=EvaluationConfig(), optim=optim)
    (stage,) = stages_of(alone)
    assert stage.config == alone
    assert (stage.name, stage.is_last) == ("", True)


def test_a_stage_that_cannot_be_is_refused_before_the_first_one_runs() -> None:
    odd = StageConfig(total_samples=320, image_size=100, optim=OptimConfig())
    with pytest.raises(ValueError, match="must divide image_size 100"):
        stages_of(replace(FLIP, stages=(odd, *FLIP.stages)))
    short = StageConfig(total_samples=20, optim=OptimConfig())
    with pytest.raises(ValueError, match="less than one batch"):
        stages_of(replace(FLIP, stages=(short, *FLIP.stages)))
    with pytest.raises(ValueError, match="ema_samples"):
        replace(FLIP, stages=FLIP.stages[:1])


def test_a_change_inside_a_stage_is_named() -> None:
    changed = replace(FLIP.stages[0], optim=OptimConfig(learning_rate=1e-3))
    other = replace(FLIP, stages=(changed, FLIP.stages[1]))
    assert differences(to_json(FLIP), to_json(other)) == [
        "stages.0.optim.learning_rate: was 4e-08, now 0.001"
    ]


def test_positions_are_resized_for_the_stage_and_nothing_else_changes() -> None:
    before = build_clip(architecture(FLIP))
    weights = {name: t.clone() for name, t in open_clip_weights.dump(before).items()}
    model = architecture(stages_of(FLIP)[2].config)
    fitted = fit_positions(weights, model)
    after = build_clip(model)
    open_clip_weights.load(after, fitted)
    changed = {n for n in weights if not torch.equal(weights[n], fitted[n])}
    assert changed == {
        n
        for n in ("visual.positional_embedding", "positional_embedding")
        if weights[n].shape != fitted[n].shape
    }
    assert "visual.positional_embedding" in changed
    old, new = before.config.vision.grid_size, model.vision.grid_size
    grid = weights["visual.positional_embedding"][1:].T.reshape(1, -1, old, old)
    expected = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    found = after.image.positional_embedding.detach()[1:].T.reshape(1, -1, new, new)
    torch.testing.assert_close(found, expected)


def test_a_fixed_table_is_computed_anew_for_the_larger_image() -> None:
    model = architecture(FLIP)
    fixed = replace(model, vision=replace(model.vision, positions="sin_cos_2d"))
    larger = replace(fixed, vision=replace(fixed.vision, image_size=fixed.vision.image_size * 2))
    fitted = fit_positions(open_clip_weights.dump(build_clip(fixed)), larger)
    fresh = open_clip_weights.dump(build_clip(larger))["visual.positional_embedding"]
    assert torch.equal(fitted["visual.positional_embedding"], fresh)


def test_fixed_positions_are_learned_from_a_later_stage_on() -> None:
    """CLIPA-v1's way: the resized table is where learning starts."""
    small, large = FLIP.stages
    learned = replace(large, image_positions="learnable")
    run = replace(FLIP, image_positions="sin_cos_2d", image_pool="avg", stages=(small, learned))
    fixed, still_fixed, trained = (architecture(stage.config) for stage in stages_of(run))
    assert fixed.vision.positions == still_fixed.vision.positions == "sin_cos_2d"
    assert trained.vision.positions == "learnable"
    assert {m.vision.pool for m in (fixed, still_fixed, trained)} == {"avg"}
    assert trained.vision.pool_before_ln
    before = build_clip(still_fixed)
    assert not before.image.positional_embedding.requires_grad
    weights = open_clip_weights.dump(before)
    after = build_clip(trained)
    open_clip_weights.load(after, fit_positions(weights, trained))
    assert after.image.positional_embedding.requires_grad
    resized = resize_image_positions(
        weights["visual.positional_embedding"], trained.vision.num_patches
    )
    assert torch.equal(after.image.positional_embedding.detach(), resized)


@pytest.mark.parametrize("stages", [FLIP.stages[-1:], ()])
def test_an_image_tower_that_rests_is_held_to_nothing(stages: tuple[StageConfig, ...]) -> None:
    """While the adapter learns, text features stand where those of images would be compared."""
    config = replace(
        FLIP,
        stages=stages,
        optim=replace(FLIP.optim, ema_samples=50),
        text_side=TextSideConfig(embeddings="llm", dim=8, distill=True),
        image_side=ImageSideConfig(self_distillation=0.5),
    )
    first = stages_of(config)[0].config
    assert first.text_side.distill
    assert first.image_side.self_distillation == 0
