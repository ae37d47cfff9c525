"""Any run made small: the same stages, masks, losses and schedules in half a minute on a CPU.

What is kept is the code that runs; what is not kept is anything that could be learned. Every length
is shortened by the same factor, rates keep their proportion, and pictures keep their share of the
model's full size.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, gcd
from pathlib import Path

from tessera.model.config import clip_config
from tessera.pipeline.index.dataset import parse_reference
from tessera.training.config import OptimConfig, StageConfig, TrainConfig
from tessera.training.tower_config import TextSideConfig

ROOT = Path("data/mini")
"""Where recipes draw the pictures of a miniature."""
TRAIN = ROOT / "index" / "train"
"""Index that miniatures train on, or a selection of which where the run has one."""
HELDOUT = ROOT / "index" / "heldout"
"""Index that they are evaluated on."""

ENCODER = ROOT / "encoder"
"""Language model with random weights that embeds the captions of miniatures."""
ENCODER_DIM = 32
"""Length of its embeddings."""

_MODEL = "tessera-demo"
_BATCH = 32
_LEAST_BATCH = 8
_STEPS = 8
"""Of each stage."""
_PEAK = 1e-3
"""Learning rate of the first stage."""


def miniature(config: TrainConfig) -> TrainConfig:
    """A run of the same kind with a tiny model on a few drawn pictures.

    Raises:
        ValueError: the model is unknown.
    """
    full_size = clip_config(config.model).vision.image_size
    stages = tuple(_small_stage(stage, config, full_size) for stage in config.stages)
    return replace(
        config,
        run_dir=f"runs/mini-{config.recipe}",
        model=_MODEL,
        total_samples=_STEPS * _BATCH,
        batch_size=_BATCH,
        accumulation=gcd(config.accumulation, _LEAST_BATCH),
        image_size=_pixels(config.image_size, full_size),
        context_length=_length(config.context_length),
        data=replace(config.data, train=_train_data(config.data.train_references[0])),
        mask=replace(config.mask, grid=None, group_size=0, embedding_every=_STEPS // 4),
        optim=_small_optim(
            config.optim,
            relative_peak=1.0,
            batch_size=_BATCH,
            share=_STEPS * _BATCH / config.total_samples,
        ),
        stages=stages,
        init_from="",
        text_side=_small_text_side(config.text_side),
        evaluation=replace(
            config.evaluation,
            zero_shot=(str(HELDOUT),),
            retrieval=(str(HELDOUT),),
            text_encoder=str(ENCODER) if config.text_side.embeddings else "",
        ),
        log_every=_STEPS // 2,
        save_every=_STEPS,
    )


def _small_text_side(text_side: TextSideConfig) -> TextSideConfig:
    """The random encoder's embeddings, where the run has any."""
    return replace(text_side, dim=ENCODER_DIM, embed_dim=0) if text_side.embeddings else text_side


def _train_data(reference: str) -> str:
    """The miniatures' index, or a selection of it by the name that the run's has."""
    selection = parse_reference(reference).selection
    return f"{TRAIN}@{selection}" if selection else str(TRAIN)


def _small_stage(stage: StageConfig, run: TrainConfig, full_size: int) -> StageConfig:
    full_batch = stage.batch_size or run.batch_size
    batch_size = _BATCH * full_batch // run.batch_size
    batch_size = min(_BATCH, max(_LEAST_BATCH, batch_size // _LEAST_BATCH * _LEAST_BATCH))
    return replace(
        stage,
        total_samples=_STEPS * batch_size,
        batch_size=batch_size,
        # 0 is the run's own, which is made small itself.
        accumulation=stage.accumulation and gcd(stage.accumulation, _LEAST_BATCH),
        image_size=_pixels(stage.image_size, full_size),
        context_length=_length(stage.context_length),
        mask=replace(stage.mask, grid=None, group_size=0, embedding_every=_STEPS // 4),
        optim=_small_optim(
            stage.optim,
            relative_peak=stage.optim.peak(full_batch) / run.optim.peak(run.batch_size),
            batch_size=batch_size,
            share=_STEPS * batch_size / stage.total_samples,
        ),
    )


def _small_optim(
    optim: OptimConfig, *, relative_peak: float, batch_size: int, share: float
) -> OptimConfig:
    """Lengths times `share`, the peak as it stands to that of the run's first stage."""
    peak = _PEAK * relative_peak
    return replace(
        optim,
        learning_rate=peak,
        min_learning_rate=optim.min_learning_rate / optim.learning_rate * peak,
        base_batch_size=batch_size if optim.base_batch_size else 0,
        # A warm-up that is a share of the run stays that share.
        warmup_samples=None
        if optim.warmup_samples is None
        else round(optim.warmup_samples * share),
        cooldown_samples=ceil(optim.cooldown_samples * share),
        ema_samples=ceil(optim.ema_samples * share),
    )


def _pixels(image_size: int, full_size: int) -> int:
    """The same share of the miniature model's full side, in whole patches, two at least."""
    vision = clip_config(_MODEL).vision
    side = round(vision.grid_size * image_size / full_size)
    return max(2, side) * vision.patch_size if image_size else 0


def _length(context_length: int) -> int:
    return min(context_length, clip_config(_MODEL).text.context_length)
