"""What is timed: a side makes batches from the same files, however it likes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tessera.pipeline import LoaderConfig
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.masking import MaskConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all sides have in common; sent to their processes."""

    reference: str
    """INDEX or INDEX@SELECTION."""
    shards: tuple[str, ...]
    """The tar files of the index, for loaders that read them whole."""
    batch_size: int
    """Pairs in a batch."""
    image_size: int
    """Side of the decoded square, in pixels."""
    patch_size: int
    """Side of a patch, in pixels."""
    crop: CropConfig
    """Random resized crop, the same distribution for all."""
    mask: MaskConfig
    """Which patches our loader hides; the others know no masks."""
    num_workers: int
    """Threads of our loader and of DALI, processes of a torch DataLoader."""
    device: str
    """Where our loader decodes and masks: cpu or cuda. With a GPU it hands batches out there in
    both cases, as for training."""

    def loader_config(self) -> LoaderConfig:
        """For our own loader."""
        return LoaderConfig(
            batch_size=self.batch_size,
            image_size=self.image_size,
            patch_size=self.patch_size,
            crop=self.crop,
            mask=self.mask,
            num_threads=self.num_workers,
            device=self.device,
            model_device="cuda" if torch.cuda.is_available() else "",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a side did in one call."""

    num_images: int
    """Images made."""
    known: dict[str, Any] = field(default_factory=dict)
    """Further figures that only this side can tell."""


class Side(Protocol):
    """Something that makes batches and can be timed at it."""

    ahead: int
    """Batches that may lie ready before a call; they are taken away before the clock starts."""

    def run(self, num_batches: int) -> Work:
        """Make so many batches."""
        ...

    def close(self) -> None:
        """End threads and processes."""
        ...


class UnavailableError(Exception):
    """A side cannot be timed here; the message says what is missing."""
