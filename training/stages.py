"""A run of several stages, as a list of runs of one: what each one is, and where it starts.

Every stage is trained like a run of its own (steps, schedule and order begin anew) from the last
weights of the one before. Steps and samples on disk are counted over the whole run, so that the
number of a checkpoint alone says which stage it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from model.config import ClipConfig, clip_config, require_clip_bpe
from model.positions import resize_image_positions, resize_text_positions, sin_cos_table
from training.config import StageConfig, TrainConfig


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
    """The model of a stage, at its image size and caption length.

    Raises:
        ValueError: the model is unknown, reads another tokenizer's ids than the index holds, or its
            patches do not fit the image size.
    """
    model = clip_config(config.model)
    require_clip_bpe(model)
    vision, text = model.vision, model.text
    if config.image_size:
        vision = replace(vision, image_size=config.image_size)
    if config.context_length:
        text = replace(text, context_length=config.context_length)
    return replace(model, vision=vision, text=text)


def fit_positions(weights: Mapping[str, Tensor], model: ClipConfig) -> dict[str, Tensor]:
    """Weights of the stage before, their position tables resized for this one's model.

    Learned tables are resized as open_clip does it (bicubic with antialiasing for images, linear
    for text); a fixed table is computed anew.

    Args:
        weights: in open_clip's names.
        model: of the stage that begins.
    """
    fitted = dict(weights)
    text = "text.positional_embedding" if model.custom_text else "positional_embedding"
    image, rows = "visual.positional_embedding", model.vision.num_patches + 1
    if len(weights[image]) != rows:
        fitted[image] = (
            sin_cos_table(model.vision.grid_size, model.vision.width)
            if model.vision.positions == "sin_cos_2d"
            else resize_image_positions(weights[image], model.vision.num_patches)
        )
    if len(weights[text]) != model.text.context_length:
        fitted[text] = resize_text_positions(weights[text], model.text.context_length)
    return fitted


def _as_runs(config: TrainConfig) -> list[TrainConfig]:
    # What is measured at the end, with or without the average, is the last stage's affair.
    on_the_way = replace(config, stages=(), evaluation=replace(config.evaluation, ema=False))
    if not config.stages:
        return [config]
    *between, last = [_as_run(on_the_way, s, n) for n, s in enumerate(config.stages, 1)]
    return [on_the_way, *between, replace(last, evaluation=config.evaluation)]


def _as_run(run: TrainConfig, stage: StageConfig, number: int) -> TrainConfig:
    crop = replace(run.data.crop, scale=stage.crop_scale) if stage.crop_scale else run.data.crop
    return replace(
        run,
        stages=(),
        seed=run.seed + number,
        total_samples=stage.total_samples,
        optim=stage.optim,
        mask=stage.mask,
        batch_size=stage.batch_size or run.batch_size,
        accumulation=stage.accumulation or run.accumulation,
        image_size=stage.image_size or run.image_size,
        context_length=stage.context_length or run.context_length,
        data=replace(run.data, crop=crop),
    )
