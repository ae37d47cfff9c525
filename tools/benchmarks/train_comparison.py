"""Which training steps take part, and the figures that follow from their turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tessera.model.config import ClipConfig, clip_config
from tessera.tools.benchmarks import train_flops
from tessera.tools.benchmarks.train_lengths import (
    captions_of,
    cc12m_captions,
    full_captions,
    visible_patches,
)
from tessera.tools.benchmarks.train_sides import (
    MatrixSide,
    OpenClipStep,
    OwnStep,
    PaddedClusterStep,
    StepSetting,
    kept_patches,
)
from tessera.tools.benchmarks.turns import Entrant, Results, Turn, spread, take_turns

SideName = Literal[
    "open_clip", "open_clip_drop50", "padded_cluster", "ours_full", "ours_0", "ours_50", "ours_75"
]
TITLES: dict[SideName, str] = {
    "open_clip": "open_clip, all patches, padded captions",
    "open_clip_drop50": "open_clip, patch dropout 0.5, padded captions",
    "padded_cluster": "padded cluster masking, 70% kept, padded captions",
    "ours_full": "ours, all patches, captions of full length",
    "ours_0": "ours, all patches",
    "ours_50": "ours, 50% masked",
    "ours_75": "ours, 75% masked",
}
"""Every side, and what it is called."""
_DROPOUT = 0.5
_PADDED_RATIO = 0.5
_MATRIX = "matrix"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is compared."""

    setting: StepSetting
    """What all sides have in common."""
    captions: str
    """full, cc12m, or the reference of an index."""
    sides: tuple[SideName, ...]
    """Who takes part."""


def compare(
    plan: Plan, *, num_steps: int, repeats: int, progress: Callable[[str], object]
) -> dict[str, Any]:
    """Time all sides and work out the figures.

    Raises:
        FileNotFoundError: the captions' index is missing.
        RuntimeError: one of our own sides, or the products it is measured by, failed.
        ValueError: the model is unknown.
    """
    config = clip_config(plan.setting.model)
    captions = caption_lengths(plan.captions, plan.setting.batch_size, config.text.context_length)
    settings = {name: _setting(plan, config, name, captions) for name in plan.sides}
    entrants: dict[str, Entrant] = {
        name: Entrant(build=_build(name), setting=settings[name]) for name in plan.sides
    }
    entrants[_MATRIX] = Entrant(build=MatrixSide, setting=plan.setting)
    results = take_turns(entrants, num_batches=num_steps, repeats=repeats, progress=progress)
    for name, reason in results.left_out.items():
        if name == _MATRIX or name.startswith("ours"):
            raise RuntimeError(f"{name} failed: {reason}")
    rate = statistics.median(turn.known["flops_per_s"] for turn in results.turns[_MATRIX])
    return {
        "mean_caption_tokens": statistics.mean(captions),
        "matrix_flops_per_s": rate,
        "sides": {
            name: _figures(results.turns[name], _flops(config, name, settings[name]), rate)
            for name in plan.sides
            if name in results.turns
        },
        "ratios": _ratios(results),
        "left_out": results.left_out,
    }


def caption_lengths(captions: str, batch_size: int, context_length: int) -> tuple[int, ...]:
    """Tokens of each caption of a batch; arguments as in `Plan` and `train_lengths`."""
    if captions == "full":
        return full_captions(batch_size, context_length)
    if captions == "cc12m":
        return cc12m_captions(batch_size, context_length)
    return captions_of(captions, batch_size, context_length)


def _build(name: SideName) -> Callable[[StepSetting], Any]:
    if name.startswith("ours"):
        return OwnStep
    return PaddedClusterStep if name == "padded_cluster" else OpenClipStep


def _setting(
    plan: Plan, config: ClipConfig, name: SideName, captions: tuple[int, ...]
) -> StepSetting:
    setting, num_patches = plan.setting, config.vision.num_patches
    if name == "open_clip_drop50":
        return replace(setting, patch_dropout=_DROPOUT)
    if name == "open_clip":
        return setting
    ratio = {"padded_cluster": _PADDED_RATIO, "ours_50": 0.5, "ours_75": 0.75}.get(name, 0.0)
    if name == "ours_full":
        captions = full_captions(setting.batch_size, config.text.context_length)
    visible = visible_patches(setting.batch_size, num_patches, ratio)
    return replace(setting, visible=visible, captions=captions)


def _flops(config: ClipConfig, name: SideName, setting: StepSetting) -> float:
    """Operations a pair, as the side computes them."""
    size, num_patches = setting.batch_size, config.vision.num_patches
    if name.startswith("ours"):
        work = train_flops.Work(
            image_tokens=[visible + 1 for visible in setting.visible],
            embedded_patches=sum(setting.visible),
            text_tokens=setting.captions,
            pooled_only=True,
        )
    else:
        kept = num_patches
        if name == "padded_cluster":
            kept = kept_patches(num_patches)
        elif name == "open_clip_drop50":
            kept = int(num_patches * (1 - _DROPOUT))
        work = train_flops.Work(
            image_tokens=[kept + 1] * size,
            embedded_patches=num_patches * size,
            text_tokens=[config.text.context_length] * size,
            pooled_only=False,
        )
    return train_flops.step_flops(config, work) / size


def _figures(turns: Sequence[Turn], flops_per_pair: float, rate: float) -> dict[str, Any]:
    pairs_per_s = spread([turn.num_images / turn.seconds for turn in turns])
    spent = {
        name: sum(turn.known["seconds"][name] for turn in turns)
        for name in turns[0].known["seconds"]
    }
    return {
        "pairs_per_s": pairs_per_s,
        "cpu_s_per_pair": spread([turn.cpu_s / turn.num_images for turn in turns]),
        "peak_memory_bytes": max(turn.known["peak_memory_bytes"] for turn in turns),
        "flops_per_pair": flops_per_pair,
        "utilisation": pairs_per_s["median"] * flops_per_pair / rate,
        "share_of_step": {name: value / sum(spent.values()) for name, value in spent.items()},
    }


def _ratios(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Each of our sides over each other, round by round: by wall clock."""
    rates = {name: results.rates(name) for name in results.turns if name != _MATRIX}
    return {
        own: {
            other: spread([a / b for a, b in zip(rates[own], rates[other], strict=True)])
            for other in rates
            if not other.startswith("ours")
        }
        for own in rates
        if own.startswith("ours")
    }
