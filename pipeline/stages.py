"""A step on its way through the loader.

Legend: B pairs of this rank, S side of an image in pixels, N patches of an image, D values of one,
R texts of an image, U text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tessera.pipeline.order import Visits


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A step as it was read: what the reading thread hands to the packing thread."""

    step: int
    """Number of the step."""
    visits: Visits
    """[B] samples of this rank."""
    encoded: list[bytes | OSError]
    """[B] image files, or why one could not be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patches:
    """A step before it is masked."""

    images: Tensor
    """[B, S, S, 3] uint8, decoded, cropped, resized and augmented."""
    patches: Tensor
    """[B, N, D] uint8, the same pixels."""
    noise: Tensor
    """[B, N] float32, for the mask to draw from."""
    visits: Visits
    """[B] samples actually served, replacements included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A step before it is packed: what a person would want to see of it."""

    images: Tensor
    """[B, S, S, 3] uint8, decoded, cropped and resized."""
    patches: Tensor
    """[B, N, D] uint8, the same pixels."""
    noise: Tensor
    """[B, N] float32, what the mask drew from."""
    visible: Tensor
    """[B, N] bool, what the model gets to see."""
    visits: Visits
    """[B] samples actually served, replacements included."""
    caption_rows: NDArray[np.int64]
    """[B*R] rows of the loader's captions, the texts served with them, image after image."""
    tokens: NDArray[np.int32]
    """[U] token ids of those texts as the model gets them, end to end."""
    text_offsets: NDArray[np.int32]
    """[B*R+1] text i owns tokens text_offsets[i] up to text_offsets[i+1]."""
