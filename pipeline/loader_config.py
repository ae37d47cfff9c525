"""What the batches of a loader hold, and how fast they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.augment import AugmentConfig
from pipeline.crops import CropConfig
from pipeline.decoding import DecoderKind
from pipeline.masking import MaskConfig
from pipeline.shard_cache import CacheConfig


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Everything that decides what the batches hold, and how fast they come."""

    batch_size: int = 256
    """Pairs in a batch, over all ranks."""
    image_size: int = 224
    """Side of the square that the crop window is resized to, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels; divides image_size."""
    context_length: int = 77
    """Most text tokens of a caption, start and end included."""
    seed: int = 0
    """Of the order and of every draw made for a sample."""
    caption_source: str = "caption"
    """Which of the index's caption sources is served."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop; evaluation takes the centre."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden; evaluation hides none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Flips and colour changes of training images; evaluation has none."""
    decoder: DecoderKind = "auto"
    """What decodes; auto takes the fastest of this machine."""
    device: str = "cpu"
    """Where images are decoded, masked and packed: cpu, or cuda with DALI's GPU decoder."""
    order: Literal["global", "window"] = "global"
    """global: every sample may follow every other. window: samples are mixed over some shards at a
    time, for slow or remote storage."""
    window_shards: int = 16
    """Shards of a window; more mix better, fewer read less ahead. Not used by `global`."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards are kept."""
    num_steps: int = 1
    """Steps of the run, over which a mask goes from pixels to embeddings; not used otherwise."""
    num_threads: int = 2
    """Threads that read, and threads that decode."""
    prefetch: int = 2
    """Batches that may wait, read and packed each."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        for name in (
            "batch_size",
            "context_length",
            "num_threads",
            "prefetch",
            "window_shards",
            "num_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_patches(self) -> int:
        """N, patches of a full image."""
        return (self.image_size // self.patch_size) ** 2
