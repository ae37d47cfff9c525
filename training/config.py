"""The configuration of a run. A recipe is a function that returns one of these."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tessera.evaluation.suite import Suite
from tessera.model.losses.config import LossConfig
from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.decoding import DecoderKind
from tessera.pipeline.index.text_reduction import TextReductionKind
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.mixture import parse_set
from tessera.pipeline.shard_cache import CacheConfig
from tessera.training.environment import num_cores, processes_here
from tessera.training.optim_config import OptimConfig
from tessera.training.tower_config import ImageSideConfig, TextSideConfig, check_sides


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pairs come from and how they are augmented."""

    train: str | tuple[str, ...] = ""
    """Folder of the training index, or INDEX@SELECTION; or several of them with weights, such as
    `A=1 B@clean=0.5`: an epoch then visits each sample of a set as often as its weight says."""
    captions: tuple[str, ...] = ("caption",)
    """Caption sources that are trained on, `NAME` or `NAME=WEIGHT`; one text is drawn per visit.
    LaCLIP's draw from four rewrites: `caption=1 laclip=4`; VeCLIP's: `caption vecap`."""
    every_text: bool = False
    """Serve as many texts of each source at every visit as its weight says, in place of one drawn;
    for `loss.multi_text`."""
    text_reduction: TextReductionKind = "truncate"
    """What a caption keeps that is longer than the model reads; syntax needs tagged captions."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random resized crop."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Flips and colour changes; none by default, as open_clip trains."""
    decoder: DecoderKind = "auto"
    """What decodes: turbo, dali, pil, or the fastest of this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where pictures are decoded and masked; cuda is DALI's GPU decoder. auto tries it on some of
    the run's pictures before the first step, takes the faster of the two where it decodes like
    Pillow, and keeps the choice to the end of the run (docs/gpu.md)."""
    order: Literal["global", "window"] = "global"
    """global: every sample may follow every other. window: samples are mixed over some shards at a
    time, for slow or remote storage."""
    window_shards: int = 16
    """window: shards that are mixed with each other."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards are kept."""
    num_threads: int = 0
    """CPU threads that read, and that decode, of each process; 0 shares out the cores."""
    prefetch: int = 2
    """Batches made ahead."""

    @property
    def train_sets(self) -> tuple[str, ...]:
        """The training sets, one or more, each as it was named."""
        return (self.train,) if isinstance(self.train, str) else tuple(self.train)

    @property
    def train_references(self) -> tuple[str, ...]:
        """INDEX or INDEX@SELECTION of each training set."""
        return tuple(parse_set(each)[0] for each in self.train_sets)

    @property
    def threads(self) -> int:
        """`num_threads` with this process's share of the machine's cores put in."""
        return self.num_threads or max(1, num_cores() // processes_here())


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Suite):
    """What is measured every `evaluate_every` steps and at the end, without masking."""

    batch_size: int = 128
    """Images encoded at once."""
    at_start: bool = False
    """Measure the model before its first step as well."""
    text_encoder: str = ""
    """Folder of the language model that embeds prompts and captions whose embeddings are stored
    nowhere; only for models that read embeddings."""
    ema: bool = False
    """Measure the average of the weights (`optim.ema_samples`) in place of the last ones."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Where a run can be watched, besides its log and metrics.jsonl."""

    tensorboard: bool = False
    """Write event files to RUN_DIR/tensorboard; needs the package tensorboard."""
    wandb: str = ""
    """Weights & Biases project to report to; needs the package wandb and its login."""
    slow_step: float = 10.0
    """A step that takes so many times the median says why."""

    def __post_init__(self) -> None:
        if self.slow_step <= 1:
            raise ValueError(f"watch.slow_step must be above 1, got {self.slow_step}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A further stage of a run: the weights of the one before, and a fresh optimiser."""

    total_samples: int
    """Length of the stage in pairs, repeats counted; rounded down to whole steps."""
    optim: OptimConfig
    """Optimiser and schedule, over the stage's own samples."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(kind="none"))
    """Which patches the model does not see; by default it sees all."""
    batch_size: int = 0
    """Pairs per step over all ranks; 0 is the run's."""
    accumulation: int = 0
    """Chunks in which a rank's pairs are encoded; 0 is the run's."""
    image_size: int = 0
    """Side of the crop, pixels; 0 is the run's. Image positions are resized."""
    context_length: int = 0
    """Most text tokens of a caption; 0 is the run's. Text positions are resized."""
    text_reduction: TextReductionKind | None = None
    """What a caption keeps that is longer than the model reads; None is the run's."""
    crop_scale: tuple[float, float] | None = None
    """Least and largest share of the picture's area in a crop; None is the run's."""
    image_positions: Literal["", "learnable"] = ""
    """learnable: positions that were fixed so far are trained from this stage on."""


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How a run that torchrun started on several processes shares its work."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every rank holds the whole model. fsdp: every rank holds a part of it (FSDP2), for
    models whose weights and optimiser state do not fit one GPU."""
    timeout_s: float = 600.0
    """Seconds that a rank waits for the others within a step before the run ends."""

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0, got {self.timeout_s}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One full run."""

    recipe: str
    """Name of the recipe this came from."""
    run_dir: str
    """Folder of checkpoints, metrics and the report; a run found there is continued."""
    model: str
    """Architecture: an open_clip name such as ViT-B-16, or one of Tessera's own."""
    init_from: str = ""
    """Weights to start from: a run's folder (its newest checkpoint), a model's folder of Tessera,
    open_clip or Hugging Face, a file, or the tag of published weights, which open_clip loads from
    its cache or downloads. Empty for fresh ones."""
    total_samples: int
    """Length of the run in pairs, repeats counted; rounded down to whole steps."""
    batch_size: int
    """Pairs per step over all ranks."""
    seed: int = 0
    """Of the weights, the order and every draw."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training data."""
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(kind="none"))
    """Which patches the model does not see in training; none is hidden unless asked for."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What the features of a batch are scored by."""
    text_side: TextSideConfig = field(default_factory=TextSideConfig)
    """A language model's embeddings in place of the text tower (docs/llm2clip.md)."""
    image_side: ImageSideConfig = field(default_factory=ImageSideConfig)
    """How far the image tower may move."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    stages: tuple[StageConfig, ...] = ()
    """What follows when these samples are seen, such as FLIP's unmasked tuning; stage 1 is the
    configuration itself."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured at the end."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Where the run can be watched."""
    image_size: int = 0
    """Side of the crop, pixels; 0 is the model's own."""
    context_length: int = 0
    """Most text tokens of a caption; 0 is the model's own."""
    image_positions: Literal["", "learnable", "sin_cos_2d"] = ""
    """Positions of patches: trained, or fixed sines and cosines; empty is the model's own."""
    image_pool: Literal["", "tok", "avg"] = ""
    """What becomes an image's feature: the class token, or the mean of the patches with the last
    layer norm behind it; empty is the model's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16", "pure_bfloat16"] = "auto"
    """bfloat16: all that blocks compute is bfloat16, and the residual stream between them float32.
    pure_bfloat16: the stream too. Weights and the optimiser are float32 in all of them. auto is
    bfloat16 on a GPU, and on a CPU that multiplies it in hardware for towers of width 384 or more;
    else float32. A resumed run keeps the choice."""
    compile: bool = False
    """torch.compile the blocks of both towers; needs the same number of patches in all batches, and
    with accumulation in all chunks."""
    checkpoint_blocks: bool = False
    """Keep only the inputs of blocks for the backward pass, and run each block again there."""
    num_threads: int = 0
    """CPU threads of the model; 0 leaves torch's choice."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Runs on several processes."""
    accumulation: int = 1
    """Chunks in which the model encodes a rank's pairs; the loss is over all of them, so the
    result is that of 1. More take less memory and a second forward pass."""
    log_every: int = 20
    """Steps between two log lines."""
    save_every: int = 200
    """Steps between two checkpoints."""
    evaluate_every: int = 0
    """Steps of a stage between two evaluations on the way; 0 evaluates at the end only."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""
    log_sample_ids: bool = False
    """Write the rows of the index that every step was trained on to sample_ids.jsonl."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "save_every", "keep_checkpoints", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size == 1 and not self.text_side.distill:
            raise ValueError(
                "batch_size 1 has no negatives: the loss is a constant and nothing is learned. "
                "Take 2 pairs or more; accumulation encodes a large batch in parts"
            )
        if self.total_samples < self.batch_size:
            raise ValueError(
                f"total_samples {self.total_samples} is less than one batch of {self.batch_size}"
            )
        for name in ("num_threads", "seed", "image_size", "context_length", "evaluate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative, got {getattr(self, name)}")
        self.optim.check_lengths(self.total_samples)
        for number, stage in enumerate(self.stages):
            stage.optim.check_lengths(stage.total_samples, f"stages.{number}.")
        self._check_texts()
        last = self.stages[-1].optim if self.stages else self.optim
        check_sides(
            self.text_side,
            self.image_side,
            loss_kind=self.loss.kind,
            ema_samples=last.ema_samples,
            strategy=self.distributed.strategy,
        )
        if self.evaluation.text_encoder and not self.text_side.embeddings:
            raise ValueError(
                "evaluation.text_encoder is for models that read embeddings, and this one reads "
                "tokens: leave it out, or set text_side.embeddings"
            )
        if self.compile:
            self._check_totals()
        if self.evaluation.ema and not last.ema_samples:
            raise ValueError("evaluation.ema needs an average of weights: set optim.ema_samples")

    def _check_texts(self) -> None:
        """Several texts of an image are for some losses only."""
        if self.data.every_text and self.loss.kind != "clip":
            raise ValueError(
                f"data.every_text serves several texts of an image, and loss.kind {self.loss.kind} "
                "takes one: choose clip"
            )
        if self.data.every_text and self.loss.same_caption != "negative":
            raise ValueError(
                f"loss.same_caption {self.loss.same_caption} compares one caption of each image, "
                "and data.every_text serves several: take loss.same_caption negative"
            )

    def _check_totals(self) -> None:
        """Compiled blocks are made for one total of patches, or compile again at every step."""
        by_threshold = self.mask.mode is None and self.mask.threshold is not None
        if self.mask.mode == "threshold" or by_threshold:
            raise ValueError("compile needs the same patches in all batches: mask.mode budget")

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.total_samples // self.batch_size


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return json.loads(json.dumps(asdict(config)))
