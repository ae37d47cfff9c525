"""What a run would be, worked out without starting it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model import Clip
from model.config import clip_config
from pipeline.index import open_index
from training.config import TrainConfig, flatten, to_json
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
        index = open_index(Path(config.data.train))
    except FileNotFoundError as error:
        return [f"data             not there yet: {error}"]
    table = index.captions(config.data.caption_source)
    lengths = np.minimum(np.diff(table.token_offsets) + 2, context_length)
    passes = config.num_steps * config.batch_size / index.num_samples
    return [
        f"                 about {lengths.mean() * config.batch_size:,.0f} text tokens "
        f"({lengths.mean():.1f} a caption)",
        f"data             {index.num_samples:,} samples in {len(index.shards)} shards: "
        f"{passes:.1f} passes",
    ]
