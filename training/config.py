"""The configuration of a run. A recipe is a function that returns one of these."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.augment import AugmentConfig
from pipeline.crops import CropConfig
from pipeline.decoding import DecoderKind
from pipeline.masking import MaskConfig
from pipeline.shard_cache import CacheConfig
from training.environment import num_cores


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pairs come from and how they are augmented."""

    train: str = ""
    """Folder of the training index, or INDEX@SELECTION."""
    caption_source: str = "caption"
    """Which of the index's caption sources is trained on; one text is drawn per visit."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Flips and colour changes; none by default, as open_clip trains."""
    decoder: DecoderKind = "auto"
    """What decodes: turbo, dali, pil, or the fastest of this machine."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where pictures are decoded and masked; cuda is DALI's GPU decoder and not measured yet."""
    order: Literal["global", "window"] = "global"
    """global: every sample may follow every other. window: samples are mixed over some shards at a
    time, for slow or remote storage."""
    window_shards: int = 16
    """window: shards that are mixed with each other."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards are kept."""
    num_threads: int = 0
    """CPU threads that read, and that decode; 0 takes one for each core."""
    prefetch: int = 2
    """Batches made ahead."""

    @property
    def threads(self) -> int:
        """`num_threads` with the cores of this machine put in."""
        return self.num_threads or num_cores()


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay, as open_clip trains."""

    learning_rate: float = 5e-4
    """Highest learning rate, reached at the end of the warm-up."""
    warmup_samples: int = 0
    """Pairs over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.2
    """Decoupled decay of matrices; gains, biases and the logit scale have none."""
    beta1: float = 0.9
    """Decay of the gradient's running mean, per step."""
    beta2: float = 0.98
    """Decay of the squared gradient's running mean, per step."""
    eps: float = 1e-6
    """Added to the root of the squared gradient's mean."""
    max_grad_norm: float = 0.0
    """Gradients longer than this are shortened to it; 0 leaves them."""
    max_logit_scale: float = 100.0
    """Upper bound of the (exponentiated) logit scale."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.warmup_samples < 0 or self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ValueError("warmup_samples, weight_decay and max_grad_norm cannot be negative")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured when training has ended, without masking."""

    zero_shot: tuple[str, ...] = ()
    """Indexes with class labels whose shard folders hold classnames.txt and templates, or
    INDEX@SELECTION."""
    retrieval: tuple[str, ...] = ()
    """Indexes of image-caption pairs, or INDEX@SELECTION."""
    batch_size: int = 128
    """Images encoded at once."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One full run."""

    recipe: str
    """Name of the recipe this came from."""
    run_dir: str
    """Folder of checkpoints, metrics and the report; a run found there is continued."""
    model: str
    """Architecture: an open_clip name such as ViT-B-16, or one of Tessera's own."""
    total_samples: int
    """Length of the run in pairs, repeats counted; rounded down to whole steps."""
    batch_size: int
    """Pairs per step over all ranks."""
    seed: int = 0
    """Of the weights, the order and every draw."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training data."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches the model does not see in training."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured at the end."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; auto is bfloat16 on a GPU and float32 on a CPU."""
    num_threads: int = 0
    """CPU threads of the model; 0 leaves torch's choice."""
    log_every: int = 20
    """Steps between two log lines."""
    save_every: int = 200
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.total_samples < self.batch_size:
            raise ValueError(
                f"total_samples {self.total_samples} is less than one batch of {self.batch_size}"
            )
        if self.num_threads < 0 or self.seed < 0:
            raise ValueError("num_threads and seed cannot be negative")

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.total_samples // self.batch_size


_FREE_TO_CHANGE = (
    "run_dir",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "evaluation",
    "data.num_threads",
    "data.cache",
    "data.prefetch",
    "num_threads",
)
"""Fields that may differ when a run is continued: they do not decide what is learned."""


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return json.loads(json.dumps(asdict(config)))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Fields whose change would make another run of it.

    Args:
        before: configuration of the run on disk, from `to_json`.
        now: the one asked for.

    Returns:
        One line a field: its name, the value before and the value now.
    """
    old, new = flatten(before), flatten(now)
    return [
        f"{name}: was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(_FREE_TO_CHANGE)
    ]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one level, names joined with dots as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
