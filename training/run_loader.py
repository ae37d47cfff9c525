"""What a run tells its loader: the settings, the sizes of its model, and a rank's share."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import torch

from tessera.model.config import ClipConfig
from tessera.model.own_tokens import own_tokens
from tessera.pipeline import LoaderConfig
from tessera.training.accumulation import equal_chunks
from tessera.training.config import TrainConfig
from tessera.training.distributed import Ranks


def rank_config(
    config: TrainConfig, architecture: ClipConfig, ranks: Ranks, device: torch.device
) -> LoaderConfig:
    """`loader_config` with this rank's share and device."""
    shared = loader_config(config, architecture)
    share = replace(shared, rank=ranks.rank, world_size=ranks.world_size)
    if share.local_batch_size % config.accumulation:
        raise ValueError(
            f"accumulation {config.accumulation} does not divide the {share.local_batch_size} "
            "pairs of a rank"
        )
    if config.compile:
        _check_chunks(share, share.local_batch_size // config.accumulation)
    return replace(share, model_device=str(device))


def _check_chunks(share: LoaderConfig, size: int) -> None:
    """Compiled blocks are made for one total of patches, or are compiled again at every step.

    Raises:
        ValueError: chunks of so many pairs do not all have as many visible patches.
    """
    if equal_chunks(share.mask.build(), share.num_patches, size, share.group_size):
        return
    if share.group_size:
        raise ValueError(
            f"compile needs chunks of whole groups of images that share a mask budget, and "
            f"{size} pairs of a chunk are no multiple of {share.group_size}: set mask.group_size "
            f"{gcd(size, share.group_size)}, or a lower accumulation"
        )
    raise ValueError(
        f"compile needs the same number of patches in every batch, and mask {share.mask.kind} "
        f"leaves different numbers of the {share.num_patches} patches: take another mask, ratio "
        "or image_size, or leave compile out"
    )


def loader_config(config: TrainConfig, architecture: ClipConfig) -> LoaderConfig:
    """The pipeline's part of a run: its own settings and the sizes that the model dictates."""
    return LoaderConfig(
        batch_size=config.batch_size,
        image_size=architecture.vision.image_size,
        patch_size=architecture.vision.patch_size,
        context_length=architecture.text.context_length,
        seed=config.seed,
        captions=config.data.captions,
        every_text=config.data.every_text,
        tokenise=own_tokens(architecture.text) if architecture.has_text_tower else None,
        text_embeddings=config.text_side.embeddings,
        text_reduction=config.data.text_reduction,
        crop=config.data.crop,
        mask=config.mask,
        augment=config.data.augment,
        num_steps=config.num_steps,
        decoder=config.data.decoder,
        device=config.data.device,
        order=config.data.order,
        window_shards=config.data.window_shards,
        cache=config.data.cache,
        num_threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
