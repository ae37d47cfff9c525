"""What a person can set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tessera.model.text_encoders.lora import LoraConfig
from tessera.pipeline.index import DEFAULT_SOURCE
from tessera.training.config import OptimConfig

_NOT_IDENTITY = ("index", "llm", "out", "probe", "device", "log_every", "save_every", "keep",
                 "num_threads")  # fmt: skip
"""Settings that change no weight, and folders, whose content is recorded by its fingerprint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Tune a language model so that captions of one image lie close together."""

    index: tyro.conf.Positional[str]
    """INDEX or INDEX@SELECTION; samples with fewer than two texts are left out."""
    llm: Path
    """Folder of a causal language model."""
    out: Path
    """Folder for the adapter, the log and checkpoints; the same command goes on in it."""
    sources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")] = (DEFAULT_SOURCE,)
    """Caption sources; a pair is any two texts of a sample in them."""
    probe: str = ""
    """INDEX or INDEX@SELECTION of the probe; empty takes the training data, which flatters."""
    probe_samples: int = 5000
    """Most images of the probe."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Size of the adapters."""
    batch_size: int = 512
    """Pairs of a step over all ranks; each rank takes an equal part."""
    steps: int = 0
    """Optimiser steps; 0 is one pass over the samples."""
    learning_rate: float = 2e-4
    """Highest, reached at the end of the warm-up; from there it falls linearly to 0."""
    warmup_steps: int = 300
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them."""
    scale: float = 50.0
    """Factor on the cosines: 50 is a temperature of 0.02."""
    both_ways: bool = True
    """Documents find their queries too; LLM2CLIP's code has queries find documents only."""
    instruction: str = "Given a caption of an image, find another caption of the same image: "
    """Stands before queries, and is not pooled; documents have none."""
    hard_negatives: str = ""
    """Name of stored embeddings of the same sources (tools/embed_captions.py). Each document gets
    one text of another image beside it, the one closest to it among some that are drawn. Empty:
    the batch alone."""
    negative_candidates: int = 64
    """How many are drawn; 1 is a random text, as in LLM2CLIP's code."""
    max_tokens: int = 512
    """Longest text, its instruction included."""
    gradient_checkpointing: bool = True
    """Compute states a second time in the backward pass instead of keeping them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights and the arithmetic; auto is bfloat16 on a GPU, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs."""
    seed: int = 0
    """Decides pairs, new adapters and dropout."""
    log_every: int = 10
    """Steps between two lines of the log."""
    save_every: int = 200
    """Steps between two checkpoints."""
    keep: int = 2
    """Newest checkpoints that stay."""
    num_threads: int = 0
    """CPU threads of torch; 0 is its own choice."""

    def __post_init__(self) -> None:
        lowest = {
            "batch_size": 2, "steps": 0, "warmup_steps": 0, "probe_samples": 2,
            "negative_candidates": 1, "log_every": 1, "save_every": 1, "keep": 1, "max_tokens": 2,
        }  # fmt: skip
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")

    def optim(self, num_steps: int) -> OptimConfig:
        """Optimiser and schedule of a run of so many steps.

        Raises:
            ValueError: the warm-up is not shorter than the run.
        """
        if self.warmup_steps >= num_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be below the run's {num_steps} steps"
            )
        return OptimConfig(
            learning_rate=self.learning_rate,
            schedule="cooldown",
            warmup_samples=self.warmup_steps * self.batch_size,
            cooldown_samples=(num_steps - self.warmup_steps) * self.batch_size,
            weight_decay=0.0,
            beta2=0.999,
            eps=1e-8,
            max_grad_norm=self.max_grad_norm,
        )

    def identity(self) -> dict[str, Any]:
        """What decides the weights, apart from data and model."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if name not in _NOT_IDENTITY}
