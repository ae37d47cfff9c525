"""What the batches of a loader hold, and how fast they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.decoding import DaliGraph, DecoderKind
from tessera.pipeline.index.caption_mix import parse_weights, text_counts
from tessera.pipeline.index.text_reduction import TextReductionKind
from tessera.pipeline.masking import ClusterMask, MaskConfig
from tessera.pipeline.masking.budget import budget
from tessera.pipeline.shard_cache import CacheConfig

Tokenise = Callable[[Sequence[str]], tuple[NDArray[np.int32], NDArray[np.int32]]]
"""Texts to tokens [U] and text_offsets [B+1], as in `PackedBatch`."""

_MOST_IMAGES = 16
"""Images that share a mask budget at most, where the group's size is left open."""
_LEAST_GROUPS = 8
"""Groups of a global batch at least, where the group's size is left open."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Everything that decides what the batches hold, and how fast they come."""

    batch_size: int = 256
    """Pairs in the global batch, over all ranks."""
    rank: int = 0
    """This process, 0 .. world_size - 1: it serves the rank-th of world_size equal parts of every
    global batch. Not used in evaluation."""
    world_size: int = 1
    """Processes that share each global batch; divides batch_size. Not used in evaluation."""
    image_size: int = 224
    """Side of the square that the crop window is resized to, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels; divides image_size."""
    context_length: int = 77
    """Most text tokens of a caption, start and end included."""
    seed: int = 0
    """Of the order and of every draw made for a sample."""
    captions: tuple[str, ...] = ("caption",)
    """Caption sources that are drawn from, `NAME` or `NAME=WEIGHT`; evaluation takes the first."""
    every_text: bool = False
    """Serve as many texts of each source at every visit as its weight says, in place of one drawn;
    evaluation serves one."""
    output: Literal["packed", "dense"] = "packed"
    """packed: `PackedBatch`, visible patches end to end. dense: `DenseBatch`, whole images."""
    pixels: Literal["uint8", "float"] = "uint8"
    """Of dense images; float is float32 with CLIP's normalisation. Packed patches are uint8."""
    texts: Literal["tokens", "padded", "raw"] = "tokens"
    """Of dense batches: token ids end to end, padded to context_length, or strings."""
    tokenise: Tokenise | None = None
    """What makes token ids of captions as they are served, cut to context_length; None takes those
    that the index stores."""
    text_embeddings: str = ""
    """Name of stored embeddings that are served beside the tokens; empty for none."""
    text_reduction: TextReductionKind = "truncate"
    """What a caption keeps that is longer than context_length; evaluation truncates."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop; evaluation takes the centre."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(kind="none"))
    """Which patches are hidden; none unless asked for. Evaluation hides none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Flips and colour changes of training images; evaluation has none."""
    decoder: DecoderKind = "auto"
    """What decodes; auto takes the fastest of this machine."""
    device: str = "auto"
    """Where images are decoded, masked and packed: cpu, or cuda with DALI's GPU decoder. auto takes
    the GPU where it decodes like Pillow and is faster (docs/gpu.md), and cpu in evaluation."""
    dali_graph: DaliGraph = "window"
    """cuda: how DALI is asked for a crop window; auto finds it out."""
    model_device: str = ""
    """Where batches are handed out, such as cuda:1; copies run ahead, on a stream of their own.
    Empty: where they were packed, and with `device auto` the GPU if there is one."""
    order: Literal["global", "window"] = "global"
    """global: every sample may follow every other. window: samples are mixed over some shards at a
    time, for slow or remote storage."""
    window_shards: int = 16
    """Shards of a window; more mix better, fewer read less ahead. Not used by `global`."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards are kept."""
    num_steps: int = 1
    """Steps of the run, over which a mask goes from pixels to embeddings; not used otherwise."""
    await_mask_weights: bool = False
    """Masks by embeddings: the consumer calls `Loader.set_patch_embedding` before every step that
    mask.embedding_every divides, and the thread that makes batches waits for it there."""
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
        if self.output == "packed" and (self.texts != "tokens" or self.pixels != "uint8"):
            raise ValueError(
                "packed batches hold uint8 patches and tokens: take output='dense' for other "
                "pixels and texts, or batch.padded_tokens(length) of a packed batch"
            )
        if self.tokenise and self.text_reduction != "truncate":
            raise ValueError(
                f"text_reduction {self.text_reduction} chooses among the ids that the index "
                "stores, and this model has a tokenizer of its own: take truncate"
            )
        self._check_ranks()
        self._check_budget()
        weights = parse_weights(self.captions)
        if self.every_text:
            text_counts(weights)

    def _check_ranks(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is 0 .. world_size - 1, got {self.rank} of {self.world_size}")
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide over {self.world_size} ranks: take "
                f"{self.batch_size // self.world_size * self.world_size or self.world_size}"
            )
        if self.group_size and self.local_batch_size % self.group_size:
            fitting = gcd(self.local_batch_size, self.group_size)
            raise ValueError(
                f"{self.local_batch_size} pairs of a rank cannot be cut into groups of "
                f"{self.group_size} images that share a mask budget: take mask.group_size "
                f"{fitting}, or fewer ranks"
            )

    def _check_budget(self) -> None:
        group, ratio = self.group_size, self.mask.mask_ratio
        if group and budget(group, self.num_patches, ratio) < group:
            raise ValueError(
                f"mask_ratio {ratio} of {self.num_patches} patches leaves less than one patch of "
                f"each image: at most {1 - 1 / self.num_patches:.3f} can be dropped"
            )

    @property
    def caption_weights(self) -> tuple[tuple[str, float], ...]:
        """Name and weight of each caption source."""
        return parse_weights(self.captions)

    @property
    def local_batch_size(self) -> int:
        """B, pairs in the batch of one rank."""
        return self.batch_size // self.world_size

    @property
    def group_size(self) -> int:
        """Images that share a mask budget; 0 if the mask has none.

        Where `mask.group_size` leaves it open: the largest number up to 16 that cuts the global
        batch into equal groups, at least 8 of them. It does not depend on the ranks, nor do the
        masks, and a batch of 2^n pairs has whole groups on up to 8 ranks without a thought.
        """
        mask = self.mask.build()
        if not isinstance(mask, ClusterMask) or mask.resolved_mode != "budget":
            return 0
        most = max(1, min(_MOST_IMAGES, self.batch_size // _LEAST_GROUPS))
        fitting = max(n for n in range(1, most + 1) if self.batch_size % n == 0)
        return mask.group_size or fitting

    @property
    def num_patches(self) -> int:
        """N, patches of a full image."""
        return (self.image_size // self.patch_size) ** 2
