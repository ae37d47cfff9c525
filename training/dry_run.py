"""What a run would be, worked out without starting it."""

from __future__ import annotations

import numpy as np
import torch

from model import Clip
from pipeline.caption_mix import parse_weights
from pipeline.chained_captions import open_captions
from pipeline.mixture import Mixture, open_sets
from pipeline.selection import Dataset
from training.config import TrainConfig, to_json
from training.config_differences import flatten
from training.opening import loader_config
from training.overlap import overlap_warnings
from training.stages import architecture as stage_architecture
from training.stages import stages_of


def describe_run(config: TrainConfig) -> list[str]:
    """Configuration, parameters, tokens per step and sample budget, a line each.

    The data need not be there; what depends on them is then left open, and said to be.

    Raises:
        ValueError: the model is unknown.
    """
    stages = stages_of(config)
    architecture = stage_architecture(config)
    loader = loader_config(config, architecture)
    with torch.device("meta"):
        clip = Clip(architecture)
    parts = {"image tower": clip.image, "text tower": clip.text, "adapter": clip.adapter}
    sizes = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in parts.items()
        if part
    }
    share = 0.0 if config.mask.kind == "none" else config.mask.mask_ratio
    visible = round(config.batch_size * loader.num_patches * (1 - share))
    lines = [f"--{name} {value}" for name, value in flatten(to_json(config)).items()]
    lines += [
        "",
        f"parameters       {sum(sizes.values()):.1f} M "
        f"({', '.join(f'{name} {size:.1f} M' for name, size in sizes.items())})",
        f"steps            {config.num_steps:,} of {config.batch_size} pairs: "
        f"{config.num_steps * config.batch_size:,} pairs",
        f"tokens per step  {visible:,} visible patches of "
        f"{config.batch_size * loader.num_patches:,}, {config.batch_size} class tokens",
    ]
    lines += [
        f"{s.name}        from step {s.first_step:,}: {s.config.num_steps:,} steps of "
        f"{s.config.batch_size} pairs, mask {s.config.mask.kind}, "
        f"{stage_architecture(s.config).vision.image_size} pixels"
        for s in stages[1:]
    ]
    return lines + _data_lines(config, loader.context_length)


def _data_lines(config: TrainConfig, context_length: int) -> list[str]:
    try:
        dataset = open_sets(config.data.train_sets)
    except FileNotFoundError as error:
        return [f"data             not there yet: {error}"]
    weights = parse_weights(config.data.captions)
    mean_length = sum(
        weight * _mean_length(dataset, name, context_length) for name, weight in weights
    ) / sum(weight for _, weight in weights)
    passes = config.num_steps * config.batch_size / dataset.num_samples
    chosen = f" of {dataset.index.num_samples:,}" if dataset.selection_fingerprint else ""
    lines = [
        f"                 about {mean_length * config.batch_size:,.0f} text tokens "
        f"({mean_length:.1f} a caption)",
        f"data             {dataset.num_samples:,}{chosen} samples in "
        f"{len(dataset.index.shards)} shards: {passes:.1f} passes",
    ]
    try:
        warnings = overlap_warnings(dataset, config.evaluation)
        warnings += open_captions(dataset.index, weights).warnings()
    except FileNotFoundError as error:
        return [*lines, f"evaluation       not there yet: {error}"]
    return [*lines, *(f"warning          {line}" for line in warnings)]


def _mean_length(dataset: Dataset | Mixture, source: str, context_length: int) -> float:
    """Mean tokens of a caption as it is served, start and end included."""
    if isinstance(dataset, Mixture):
        means = [_mean_length(part, source, context_length) for part in dataset.parts]
        return float(np.average(means, weights=dataset.quotas))
    table = dataset.index.captions(source)
    lengths = np.diff(table.token_offsets)
    if dataset.rows is not None:
        lengths = lengths[table.rows(dataset.rows.astype(np.int64))[0]]
    return float(np.minimum(lengths + 2, context_length).mean()) if len(lengths) else 2.0
