"""Unit features of whole data sets, on the CPU, in float32.

Legend: M images of a data set, K texts, d length of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model import Clip
from pipeline import LoaderConfig, open_evaluation_loader

Progress = Callable[[int], object]
"""Called with the number of images or texts done since the last call."""

PackedTexts = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Token ids [U] and offsets [B+1] of some texts, packed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """The images of an index, or of a selection, in its own order, bad ones left out."""

    features: Tensor
    """[M, d] float32, unit length, on the CPU."""
    sample_ids: NDArray[np.int64]
    """[M] rows of the index, ascending."""
    num_bad: int
    """Images of the index that could not be decoded."""


def evaluation_config(clip: Clip, batch_size: int, num_threads: int) -> LoaderConfig:
    """How images and captions must be prepared for this model."""
    return LoaderConfig(
        batch_size=batch_size,
        image_size=clip.config.vision.image_size,
        patch_size=clip.config.vision.patch_size,
        context_length=clip.config.text.context_length,
        num_threads=num_threads,
    )


@torch.inference_mode()
def encode_images(
    clip: Clip, index_dir: str, config: LoaderConfig, progress: Progress | None = None
) -> ImageFeatures:
    """Encode every image of a set: centre crop, all patches visible.

    Args:
        clip: its parameters' device is where it runs.
        index_dir: `INDEX`, or `INDEX@SELECTION`.
        config: from `evaluation_config`.
        progress: told how many images are done.
    """
    device = clip.logit_scale.device
    features, sample_ids = [torch.empty(0, clip.config.embed_dim)], [np.empty(0, dtype=np.int64)]
    with open_evaluation_loader(index_dir, config) as loader:
        for batch in loader:
            here = batch.to(device)
            encoded = clip.encode_image(here.patches, here.positions, here.image_offsets)
            features.append(F.normalize(encoded.float(), dim=1).cpu())
            sample_ids.append(batch.sample_ids.numpy())
            if progress:
                progress(batch.num_samples)
        num_bad = len(loader.stats.bad_samples)
    return ImageFeatures(
        features=torch.cat(features), sample_ids=np.concatenate(sample_ids), num_bad=num_bad
    )


@torch.inference_mode()
def encode_texts(
    clip: Clip, packed: Iterator[PackedTexts], progress: Progress | None = None
) -> Tensor:
    """Encode texts that come packed, some at a time.

    Args:
        clip: its parameters' device is where it runs.
        packed: batches of tokens and offsets.
        progress: told how many texts are done.

    Returns:
        [K, d] float32, unit length, on the CPU.
    """
    device = clip.logit_scale.device
    features = [torch.empty(0, clip.config.embed_dim)]
    for tokens, offsets in packed:
        encoded = clip.encode_text(
            torch.from_numpy(tokens).to(device), torch.from_numpy(offsets).to(device)
        )
        features.append(F.normalize(encoded.float(), dim=1).cpu())
        if progress:
            progress(len(offsets) - 1)
    return torch.cat(features)
