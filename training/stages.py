"""A run of several stages, as a list of runs of one: what each one is, and where it starts.

Every stage is trained like a run of its own (steps, schedule and order begin anew) from the last
weights of the one before. Steps and samples on disk are counted over the whole run, so that the
number of a checkpoint alone says which stage it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from tessera.model.config import AdapterConfig, ClipConfig, clip_config
from tessera.model.open_clip_weights import image_positions_name, is_text_name
from tessera.model.positions import resize_image_positions, resize_text_positions, sin_cos_table
from tessera.training.config import OptimConfig, StageConfig, TrainConfig
from tessera.training.tower_config import ImageSideConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a run."""

    number: int
    """Counted from 1."""
    count: int
    """Stages of the run."""
    config: TrainConfig
    """Of the stage alone, as if it were a run."""
    first_step: int
    """Steps of the run before it."""
    first_sample: int
    """Pairs of the run before it."""

    @property
    def is_last(self) -> bool:
        """Whether the run ends with it."""
        return self.number == self.count

    @property
    def name(self) -> str:
        """For people: "" in a run of one stage."""
        return f"stage {self.number}/{self.count}" if self.count > 1 else ""

    def samples(self, step: int) -> int:
        """Pairs of the run seen after so many steps of the stage."""
        return self.first_sample + step * self.config.batch_size


def stages_of(config: TrainConfig) -> tuple[Stage, ...]:
    """All stages of a run, the first of which is the configuration itself.

    A later stage draws with a seed of its own: else it would begin with the samples, crops and
    captions that the first one began with.

    Raises:
        ValueError: a stage's sizes do not fit each other, or the model is unknown.
    """
    found: list[Stage] = []
    first_step = first_sample = 0
    for number, stage_config in enumerate(_as_runs(config), 1):
        architecture(stage_config)
        found.append(
            Stage(
                number=number,
                count=1 + len(config.stages),
                config=stage_config,
                first_step=first_step,
                first_sample=first_sample,
            )
        )
        first_step += stage_config.num_steps
        first_sample += stage_config.num_steps * stage_config.batch_size
    return tuple(found)


def stage_at(config: TrainConfig, steps: int) -> Stage:
    """The stage that goes on after so many steps of the run; the last one when all are done."""
    stages = stages_of(config)
    return [stage for stage in stages if stage.first_step <= steps][-1]


def architecture(config: TrainConfig) -> ClipConfig:
    """The model of a stage, with its image size, caption length, positions, pooling and text side.

    Who made the embeddings of its text side is known once the data are at hand.

    Raises:
        ValueError: the model is unknown, or its patches do not fit the image size.
    """
    model = clip_config(config.model)
    vision, text = model.vision, model.text
    if config.image_size:
        vision = replace(vision, image_size=config.image_size)
    if config.context_length:
        text = replace(text, context_length=config.context_length)
    if config.image_positions:
        vision = replace(vision, positions=config.image_positions)
    if config.image_pool:
        vision = replace(vision, pool=config.image_pool, pool_before_ln=config.image_pool == "avg")
    side = config.text_side
    if not side.embeddings:
        return replace(model, vision=vision, text=text)
    adapter = AdapterConfig(
        embedding_dim=side.dim,
        layers=side.layers,
        mlp_ratio=side.mlp_ratio,
        replaces_text=not (side.keep_text or side.distill),
    )
    dim = side.embed_dim or model.embed_dim
    return replace(model, vision=vision, text=text, adapter=adapter, embed_dim=dim)


def fit_positions(weights: Mapping[str, Tensor], model: ClipConfig) -> dict[str, Tensor]:
    """Weights of the stage before as this one's model has them: of other sizes, or without text.

    A text tower that only taught the adapter is left behind. Learned tables are resized as
    open_clip does it (bicubic with antialiasing for images, linear for text), and so is one that
    was fixed and is learned from now on; one that stays fixed is computed anew.

    Args:
        weights: in open_clip's names.
        model: of the stage that begins.
    """
    fitted = dict(weights)
    if not model.has_text_tower:
        fitted = {name: value for name, value in fitted.items() if not is_text_name(name)}
    text = "text.positional_embedding" if model.custom_text else "positional_embedding"
    image, vision = image_positions_name(model), model.vision
    if weights[image].shape[-2] != vision.num_positions:
        fitted[image] = (
            sin_cos_table(vision.grid_size, vision.width)
            if vision.positions == "sin_cos_2d"
            else resize_image_positions(
                weights[image], vision.num_patches, class_token=vision.class_token
            )
        )
    if text in fitted and len(weights[text]) != model.text.context_length:
        fitted[text] = resize_text_positions(weights[text], model.text.context_length)
    return fitted


def _as_runs(config: TrainConfig) -> list[TrainConfig]:
    image_side = config.image_side
    if config.text_side.distill:  # the image tower rests while the adapter learns
        image_side = replace(image_side, self_distillation=0.0)
    config = replace(config, optim=_with_pairs(config.optim, config.total_samples))
    if not config.stages:
        return [replace(config, image_side=image_side)]
    # What is measured at the end, with or without the average, is the last stage's affair.
    unmeasured = replace(config.evaluation, ema=False)
    first = replace(config, stages=(), evaluation=unmeasured, image_side=image_side)
    *between, last = [
        _as_run(first, stage, number, config.image_side)
        for number, stage in enumerate(config.stages, 1)
    ]
    return [first, *between, replace(last, evaluation=config.evaluation)]


def _with_pairs(optim: OptimConfig, total_samples: int) -> OptimConfig:
    """The same with its warm-up in pairs: of the length asked for, not of its whole steps."""
    return replace(optim, warmup_samples=optim.warmup_pairs(total_samples))


def _as_run(
    run: TrainConfig, stage: StageConfig, number: int, image_side: ImageSideConfig
) -> TrainConfig:
    data = run.data
    if stage.crop_scale:
        data = replace(data, crop=replace(data.crop, scale=stage.crop_scale))
    if stage.text_reduction:
        data = replace(data, text_reduction=stage.text_reduction)
    return replace(
        run,
        stages=(),
        seed=run.seed + number,
        total_samples=stage.total_samples,
        optim=_with_pairs(stage.optim, stage.total_samples),
        mask=stage.mask,
        batch_size=stage.batch_size or run.batch_size,
        accumulation=stage.accumulation or run.accumulation,
        image_size=stage.image_size or run.image_size,
        context_length=stage.context_length or run.context_length,
        image_positions=stage.image_positions or run.image_positions,
        text_side=replace(run.text_side, distill=False),
        image_side=image_side,
        data=data,
    )
