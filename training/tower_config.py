"""What is trained of the two towers, and what may stand in place of the text tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tune = Literal["all", "frozen", "projection", "last", "lora"]


@dataclass(frozen=True, kw_only=True)
class TowerTuning:
    """How far a tower may move from the weights that it starts from."""

    tune: Tune = "all"
    """all: every weight. frozen: none (LiT; Zhai et al. 2022), but an image projection that
    text_side.embed_dim begins anew. projection: the last matrix alone. last: the last
    `last_blocks` blocks and what follows them. lora: low-rank updates of the blocks' matrices (Hu
    et al. 2022), and a projection that begins anew."""
    last_blocks: int = 0
    """last: how many blocks are trained; the earlier ones and the embeddings are frozen."""
    lora_rank: int = 16
    """Rank of each update."""
    lora_alpha: float = 32.0
    """An update counts `lora_alpha / lora_rank` times."""

    def __post_init__(self) -> None:
        if self.lora_rank < 1 or self.lora_alpha <= 0:
            raise ValueError(
                f"lora_rank must be at least 1 and lora_alpha above 0, got {self.lora_rank} and "
                f"{self.lora_alpha}"
            )
        if (self.tune == "last") != (self.last_blocks > 0):
            raise ValueError(
                f"tune last and last_blocks go together, got tune {self.tune} and last_blocks "
                f"{self.last_blocks}: set both, or neither"
            )


@dataclass(frozen=True, kw_only=True)
class TextSideConfig(TowerTuning):
    """How far the text tower may move, or an adapter on stored embeddings in its place."""

    embeddings: str = ""
    """Name of the embeddings that tools/embed_captions.py stored beside the index, for all of
    data.captions and for `caption`; empty for the model's own text tower."""
    dim: int = 0
    """Length of an embedding, as the encoder's card has it; another one in the store is refused."""
    layers: int = 4
    """Residual blocks of the adapter."""
    mlp_ratio: float = 2.0
    """Hidden width of a block over `dim`."""
    embed_dim: int = 0
    """Length of the features of both sides, whose projections then start anew; 0 is the model's."""
    keep_text: bool = False
    """Train the model's own text tower beside the adapter, with a loss of its own of the same
    weight (LLM2CLIP, table 9 b)."""
    distill: bool = False
    """In the run's first stage, train the adapter alone, to give what the model's text tower gives
    (ProCLIP, first stage); the stages that follow train as usual."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embeddings and not self.keep_text and self.tune != "all":
            raise ValueError(
                f"text_side.tune {self.tune} is for a text tower, and text_side.embeddings puts an "
                "adapter in its place: leave one of them out"
            )
        if not self.embeddings and (self.keep_text or self.distill or self.embed_dim):
            raise ValueError("text_side: embed_dim, keep_text and distill need embeddings")
        if self.embeddings and self.dim < 1:
            raise ValueError(
                f"text_side.dim must be the length of the embeddings {self.embeddings!r}, got "
                f"{self.dim}: embeddings.json beside them has it as dim"
            )


@dataclass(frozen=True, kw_only=True)
class ImageSideConfig(TowerTuning):
    """How far the image tower may move."""

    self_distillation: float = 0.0
    """Weight of a loss that keeps image features near those of the running average of the weights
    (ProCLIP, second stage: 4e-4); needs optim.ema_samples. 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.self_distillation < 0:
            raise ValueError(f"self_distillation cannot be negative, got {self.self_distillation}")
        if self.self_distillation and self.tune == "frozen":
            raise ValueError("self_distillation has no effect on a frozen image tower: tune all")


def check_sides(
    text: TextSideConfig,
    image: ImageSideConfig,
    *,
    loss_kind: str,
    ema_samples: int,
    strategy: str,
) -> None:
    """Refuse what cannot be trained together.

    Args:
        text: of the run.
        image: of the run.
        loss_kind: its loss.
        ema_samples: half-life of its average of weights in the last stage; 0 for none.
        strategy: how ranks share the model.

    Raises:
        ValueError: names the fields and what to change.
    """
    if text.keep_text and loss_kind != "clip":
        raise ValueError(
            f"text_side.keep_text gives two features of a caption, and loss.kind {loss_kind} takes "
            "one: choose clip"
        )
    if image.self_distillation and not ema_samples:
        raise ValueError(
            "image_side.self_distillation needs an average of weights: set optim.ema_samples"
        )
    for name, side in (("image_side", image), ("text_side", text)):
        if side.tune == "lora" and (ema_samples or strategy == "fsdp"):
            raise ValueError(
                f"{name}.tune lora keeps no average of weights and needs no shards: set "
                "optim.ema_samples 0 and distributed.strategy ddp"
            )
