"""Warm-ups: shares of the run that give the published pairs at the published length."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tessera.recipes import RECIPES
from tessera.recipes.datasets import IMAGENET_PASS
from tessera.training.config import OptimConfig, StageConfig, TrainConfig
from tessera.training.stages import stages_of

_CC12M = 2_000 * 2_048
_PUBLISHED = {
    "demo": (3_200,),
    "flickr8k": (6_400,),
    "clip": (_CC12M,),
    "clip-laion": (40 * IMAGENET_PASS,),
    "flip-50": (_CC12M,),
    "flip-75": (_CC12M,),
    "flip-50-scaled": (_CC12M, _CC12M // 2),
    "flip-75-scaled": (_CC12M, _CC12M // 2),
    "flip-50-laion": (40 * IMAGENET_PASS, 20 * IMAGENET_PASS),
    "flip-75-laion": (40 * IMAGENET_PASS, 20 * IMAGENET_PASS),
    "cluster-rgb-03": (_CC12M,),
    "cluster-rgb-05": (_CC12M,),
    "cluster-embedding": (_CC12M,),
    "cluster-kmeans": (_CC12M,),
    "clipa-resize": (_CC12M, _CC12M // 2),
    "clipa-random": (_CC12M, _CC12M // 2),
    "clipa-grid": (_CC12M, _CC12M // 2),
    "clipa-block": (_CC12M, _CC12M // 2),
    "clipa-b16": (51_200_000, 25_600_000),
    "clipa-l16": (51_200_000, 25_600_000),
    "clipa-l16-t8": (51_200_000, 25_600_000),
    "clipa-h14": (3_200 * 65_536, 26_214_400, 26_214_400),
    "laclip": (10_968_539,),
    "laclip-mt": (10_968_539,),
    "veclip": (_CC12M,),
    "veclip-dfn": (_CC12M,),
    "fastclip": (10_000 * 2_048,),
    "llm2clip": (0,),
    "llm2clip-distilled": (0, 0),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_published_warmups_are_exact_at_the_published_length(name: str) -> None:
    assert name in _PUBLISHED, "a new recipe: write its published warm-up down here"
    stages = stages_of(RECIPES[name].build())
    assert tuple(stage.config.optim.warmup_samples for stage in stages) == _PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name, pairs in _PUBLISHED.items() if any(pairs)])
def test_a_shorter_run_has_a_shorter_warmup(name: str) -> None:
    config = RECIPES[name].build()
    shorter = replace(config, total_samples=config.total_samples // 10)
    pairs = stages_of(shorter)[0].config.optim.warmup_samples
    assert pairs == pytest.approx(_PUBLISHED[name][0] / 10, abs=1)


def test_the_last_stages_of_clipa_h14_have_their_published_lengths() -> None:
    lengths = [stage.total_samples for stage in RECIPES["clipa-h14"].build().stages]
    assert lengths == [524_288_000, 131_072_000]


def run_of(total_samples: int, optim: OptimConfig, *stages: StageConfig) -> TrainConfig:
    return TrainConfig(
        recipe="demo", run_dir="x", model="tessera-demo", total_samples=total_samples,
        batch_size=10, optim=optim, stages=stages,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_pairs_take_the_place_of_a_share(share: float) -> None:
    for pairs in (0, 30):
        config = run_of(100, OptimConfig(warmup=share, warmup_samples=pairs))
        assert stages_of(config)[0].config.optim.warmup_samples == pairs


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    run_of(100, OptimConfig(warmup_samples=100))
    with pytest.raises(ValueError, match=r"warmup_samples 101 is longer than the run of 100 pairs"):
        run_of(100, OptimConfig(warmup_samples=101))
    stage = StageConfig(total_samples=50, optim=OptimConfig(warmup_samples=60))
    with pytest.raises(ValueError, match=r"stages\.0\.optim\.warmup_samples 60 is longer"):
        run_of(100, OptimConfig(), stage)
    with pytest.raises(ValueError, match="must lie in"):
        OptimConfig(warmup=2_000)


def test_a_cooldown_that_does_not_fit_behind_the_warmup_is_refused() -> None:
    optim = OptimConfig(schedule="cooldown", warmup=0.5, cooldown_samples=60)
    with pytest.raises(ValueError, match="do not fit into the run of 100 pairs"):
        run_of(100, optim)
    run_of(120, optim)
