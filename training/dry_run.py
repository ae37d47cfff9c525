"""What a run would be, worked out without starting it."""

from __future__ import annotations

import numpy as np
import torch

from model import Clip
from model.config import clip_config
from pipeline.selection import open_dataset
from training.config import TrainConfig, flatten, to_json
from training.overlap import overlap_warnings
from training.session import loader_config


def describe_run(config: TrainConfig) -> list[str]:
    """Configuration, parameters, tokens per step and sample budget, a line each.

    The data need not be there; what depends on them is then left open, and said to be.

    Raises:
        ValueError: the model is unknown.
    """
    architecture = clip_config(config.model)
    loader = loader_config(config, architecture)
    with torch.device("meta"):
        clip = Clip(architecture)
    num_image, num_text = (sum(p.numel() for p in t.parameters()) for t in (clip.image, clip.text))
    share = 0.0 if config.mask.kind == "none" else config.mask.mask_ratio
    visible = round(config.batch_size * loader.num_patches * (1 - share))
    lines = [f"--{name} {value}" for name, value in flatten(to_json(config)).items()]
    lines += [
        "",
        f"parameters       {(num_image + num_text) / 1e6:.1f} M "
        f"(image tower {num_image / 1e6:.1f} M, text tower {num_text / 1e6:.1f} M)",
        f"steps            {config.num_steps:,} of {config.batch_size} pairs: "
        f"{config.num_steps * config.batch_size:,} pairs",
        f"tokens per step  {visible:,} visible patches of "
        f"{config.batch_size * loader.num_patches:,}, {config.batch_size} class tokens",
    ]
    return lines + _data_lines(config, loader.context_length)


def _data_lines(config: TrainConfig, context_length: int) -> list[str]:
    try:
        dataset = open_dataset(config.data.train)
    except FileNotFoundError as error:
        return [f"data             not there yet: {error}"]
    table = dataset.index.captions(config.data.caption_source)
    lengths = np.diff(table.token_offsets)
    if dataset.rows is not None:
        lengths = lengths[table.rows(dataset.rows.astype(np.int64))[0]]
    lengths = np.minimum(lengths + 2, context_length)
    passes = config.num_steps * config.batch_size / dataset.num_samples
    chosen = f" of {dataset.index.num_samples:,}" if dataset.selection else ""
    lines = [
        f"                 about {lengths.mean() * config.batch_size:,.0f} text tokens "
        f"({lengths.mean():.1f} a caption)",
        f"data             {dataset.num_samples:,}{chosen} samples in "
        f"{len(dataset.index.shards)} shards: {passes:.1f} passes",
    ]
    try:
        warnings = overlap_warnings(dataset, config.evaluation)
    except FileNotFoundError as error:
        return [*lines, f"evaluation       not there yet: {error}"]
    return [*lines, *(f"warning          {line}" for line in warnings)]
