"""Floating point operations of a whole recipe, over all of its stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.caption_mix import parse_weights, text_counts
from tools.benchmarks.train_flops import (
    Work,
    adapter_forward,
    image_forward,
    step_flops,
    text_forward,
)
from tools.benchmarks.train_lengths import cc12m_captions
from training.config import TrainConfig
from training.stages import architecture, stages_of

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
    """Count a recipe's operations.

    Images of a masked batch are taken to keep the same number of patches each.

    Raises:
        ValueError: the model is unknown, or a stage does not fit it.
    """
    pairs, flops = 0, 0.0
    for stage in stages_of(config):
        seen = stage.config.num_steps * stage.config.batch_size
        pairs += seen
        flops += seen * flops_per_pair(stage.config)
    return Cost(recipe=config.recipe, pairs=pairs, flops=flops)


def flops_per_pair(config: TrainConfig) -> float:
    """Operations of a pair in a run of one stage, mean over a batch."""
    model = architecture(config)
    num_patches = model.vision.num_patches
    visible = config.mask.build().num_visible(_SAMPLE, num_patches)
    if visible is None:  # what a threshold leaves is known on average
        visible = round(_SAMPLE * num_patches * (1 - config.mask.mask_ratio))
    kept, rest = divmod(visible, _SAMPLE)
    work = Work(
        image_tokens=[kept + 2] * rest + [kept + 1] * (_SAMPLE - rest),
        embedded_patches=visible,
        text_tokens=_captions(model.text.context_length) * _texts_per_image(config),
        pooled_only=True,
    )
    if config.text_side.distill:  # the adapter learns what the text tower says; no image is read
        return (text_forward(model, work) + 3 * adapter_forward(model, work)) / _SAMPLE
    flops = step_flops(model, work)
    if config.image_side.self_distillation:
        flops += image_forward(model, work)
    return flops / _SAMPLE


def _texts_per_image(config: TrainConfig) -> int:
    if not config.data.every_text:
        return 1
    return sum(text_counts(parse_weights(config.data.captions)))


def _captions(context_length: int) -> tuple[int, ...]:
    """Tokens of captions like CC12M's, cut at the context."""
    return tuple(min(length, context_length) for length in cc12m_captions(_SAMPLE, _LONGEST))
