"""A miniature keeps a run's shape and loses its size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tessera.recipes import RECIPES
from tessera.training.config import TrainConfig
from tessera.training.miniature import HELDOUT, TRAIN, miniature
from tessera.training.stages import architecture, stages_of


def pairs(config: TrainConfig) -> int:
    last = stages_of(config)[-1]
    return last.samples(last.config.num_steps)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_becomes_small_and_stays_itself(name: str) -> None:
    full = RECIPES[name].build()
    small = miniature(full)
    assert pairs(small) <= 8 * 32 * (1 + len(full.stages))
    assert small.data.train == str(TRAIN) + ("@dfn" if name == "veclip-dfn" else "")
    assert small.evaluation.zero_shot == small.evaluation.retrieval == (str(HELDOUT),)
    assert (small.recipe, small.loss, small.seed) == (full.recipe, full.loss, full.seed)
    assert small.run_dir != full.run_dir
    assert (small.data.captions, small.data.every_text) == (
        full.data.captions,
        full.data.every_text,
    )
    for before, after in zip(stages_of(full), stages_of(small), strict=True):
        assert after.config.accumulation == before.config.accumulation
        assert after.config.data.text_reduction == before.config.data.text_reduction
        assert after.config.image_positions == before.config.image_positions
        assert after.config.mask.kind == before.config.mask.kind
        assert after.config.mask.mask_ratio == before.config.mask.mask_ratio
        assert after.config.optim.schedule == before.config.optim.schedule
        warmup = after.config.optim.warmup_pairs(after.config.total_samples)
        assert bool(warmup) == bool(before.config.optim.warmup_pairs(before.config.total_samples))
        assert warmup < after.config.total_samples


def test_rates_keep_their_proportion_and_lengths_theirs() -> None:
    full = RECIPES["clipa-h14"].build()
    small = miniature(full)
    for scale in (full, small):
        rates = [s.config.optim.peak(s.config.batch_size) for s in stages_of(scale)]
        assert [rate / rates[0] for rate in rates] == pytest.approx([1, 0.025, 0.003125])
        runs = [stage.config for stage in stages_of(scale)]
        warmups = [c.optim.warmup_pairs(c.total_samples) / c.total_samples for c in runs]
        assert warmups == pytest.approx([0.0164, 0.05, 0.2], abs=2 / 96)
    grids = [architecture(s.config).vision.grid_size for s in stages_of(small)]
    assert grids == [3, 8, 12]  # of 8 where the full model has 16: 6, 16, 24
    assert [architecture(s.config).text.context_length for s in stages_of(small)] == [8, 32, 32]


def test_chunks_and_averages_stay() -> None:
    full = RECIPES["flip-50"].build()
    optim = replace(full.optim, ema_samples=1_000_000, min_learning_rate=5e-5)
    evaluation = replace(full.evaluation, ema=True)
    small = miniature(replace(full, accumulation=4, optim=optim, evaluation=evaluation))
    assert small.accumulation == 4
    assert small.evaluation.ema
    assert 0 < small.optim.ema_samples < small.total_samples
    assert small.optim.min_learning_rate / small.optim.learning_rate == pytest.approx(0.1)
