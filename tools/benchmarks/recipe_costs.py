"""Floating point operations of a whole recipe, over all of its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tessera.pipeline.index.caption_mix import parse_weights, text_counts
from tessera.tools.benchmarks.train_flops import (
    Work,
    adapter_forward,
    image_forward,
    step_flops,
    text_forward,
)
from tessera.tools.benchmarks.train_lengths import cc12m_captions
from tessera.training.config import TrainConfig
from tessera.training.stages import architecture, stages_of

_SAMPLE = 1_024
"""Pairs whose lengths stand for a batch's; long enough for mask groups and captions' lengths."""
_LONGEST = 77
"""Tokens of a caption as the index of CC12M is trained on at full length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a recipe computes."""

    recipe: str
    """Its name."""
    pairs: int
    """Pairs of all stages, repeats counted."""
    flops: float
    """Operations of all stages, forward and backward."""

    def gpu_hours(self, tflops: float) -> float:
        """Hours of a GPU that does so many TFLOP/s."""
        return self.flops / (tflops * 1e12) / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def recipe_cost(config: TrainConfig) -> Cost:
    """Count a recipe's operations, with captions as long as CC12M's.

    Raises:
        ValueError: the model is unknown, or a stage does not fit it.
    """
    costs = stage_costs(config, _cc12m_lengths)
    return Cost(
        recipe=config.recipe,
        pairs=sum(pairs for pairs, _ in costs),
        flops=sum(pairs * each for pairs, each in costs),
    )


def stage_costs(
    config: TrainConfig, text_lengths: Callable[[TrainConfig, int], Sequence[int]]
) -> list[tuple[int, float]]:
    """(pairs, operations a pair) of every stage; recipe costs and comparisons are both made of it.

    Args:
        config: of the run.
        text_lengths: gives the tokens of each caption in a batch, start and end included, for a
            stage's configuration and its context length.

    Raises:
        ValueError: the model is unknown, or a stage does not fit it.
    """
    found = []
    for stage in stages_of(config):
        lengths = text_lengths(stage.config, architecture(stage.config).text.context_length)
        pairs = stage.config.num_steps * stage.config.batch_size
        found.append((pairs, flops_per_pair(stage.config, lengths)))
    return found


def flops_per_pair(config: TrainConfig, text_lengths: Sequence[int]) -> float:
    """Operations of a pair in a run of one stage, mean over a batch.

    Images of a masked batch are taken to keep the same number of patches each. Distilling an
    adapter reads no image; self-distillation runs the image tower forward once more.

    Args:
        config: of the run.
        text_lengths: tokens of each caption in the batch, one for each pair.
    """
    model, batch = architecture(config), len(text_lengths)
    num_patches = model.vision.num_patches
    visible = config.mask.build().num_visible(batch, num_patches)
    if visible is None:  # what a threshold leaves is known on average
        visible = round(batch * num_patches * (1 - config.mask.mask_ratio))
    kept, rest = divmod(visible, batch)
    work = Work(
        image_tokens=[kept + 2] * rest + [kept + 1] * (batch - rest),
        embedded_patches=visible,
        text_tokens=[*text_lengths] * _texts_per_image(config),
        pooled_only=True,
    )
    if config.text_side.distill:
        return (text_forward(model, work) + 3 * adapter_forward(model, work)) / batch
    flops = step_flops(model, work)
    if config.image_side.self_distillation:
        flops += image_forward(model, work)
    return flops / batch


def _texts_per_image(config: TrainConfig) -> int:
    if not config.data.every_text:
        return 1
    return sum(text_counts(parse_weights(config.data.captions)))


def _cc12m_lengths(_config: TrainConfig, context_length: int) -> list[int]:
    """Tokens of captions like CC12M's, cut at the context."""
    return [min(length, context_length) for length in cc12m_captions(_SAMPLE, _LONGEST)]
