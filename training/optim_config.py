"""How a run learns: optimiser, learning rate and its course."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal["adamw", "lamb", "lion", "sgd"]

_BETAS: dict[OptimizerName, tuple[float, float]] = {
    "adamw": (0.9, 0.98),
    "lamb": (0.9, 0.999),
    "lion": (0.9, 0.99),
    "sgd": (0.9, 0.0),
}
"""Used where a configuration names none: open_clip's for ViTs, and those of the LAMB (You et al.
2020) and Lion (Chen et al. 2023) papers; of sgd's two only the first, its momentum, is used."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and learning rate; the defaults are AdamW and a cosine, as open_clip trains."""

    optimizer: OptimizerName = "adamw"
    """sgd has Nesterov's momentum. Learning rates do not carry over: Lion wants about a third to a
    tenth of AdamW's and as much more weight decay, LAMB and SGD want a higher one."""
    learning_rate: float = 5e-4
    """Highest learning rate, reached at the end of the warm-up."""
    image_learning_rate: float = 0.0
    """The same for the image tower alone; 0 is `learning_rate`."""
    text_learning_rate: float = 0.0
    """The same for the text tower alone, or for the adapter in its place; 0 is `learning_rate`."""
    base_batch_size: int = 0
    """The learning rate is that of a global batch of so many pairs and is scaled linearly to this
    run's, as FLIP and CLIPA do with 256; 0 takes it as it is."""
    min_learning_rate: float = 0.0
    """Where cosine and cooldown end; never scaled."""
    schedule: Literal["cosine", "constant", "cooldown"] = "cosine"
    """What follows the warm-up; cooldown is constant with a way down at the end."""
    warmup: float = 0.0
    """Share of the run, or of the stage, over which the learning rate rises linearly from 0."""
    warmup_samples: int | None = None
    """The warm-up in pairs, in place of its share of the run."""
    cooldown_samples: int = 0
    """cooldown: pairs over which it falls, the last of the run."""
    cooldown_power: float = 1.0
    """cooldown: 1 falls linearly, more falls fast at first."""
    weight_decay: float = 0.2
    """Decay of matrices, times the learning rate and apart from the gradient (with lamb, a part of
    the update whose length is set); gains, biases and the logit scale have none."""
    beta1: float | None = None
    """Decay of the gradient's running mean, per step: 0.9 for all optimisers; sgd's momentum."""
    beta2: float | None = None
    """Decay of the squared gradient's running mean, per step (of lion's memory of the gradient):
    0.98 for adamw, 0.999 for lamb, 0.99 for lion; sgd has none."""
    eps: float = 1e-6
    """adamw and lamb: added to the root of the squared gradient's mean."""
    max_grad_norm: float = 0.0
    """Gradients longer than this are shortened to it; 0 leaves them."""
    min_logit_scale: float = 1.0
    """Lower bound of the (exponentiated) logit scale."""
    max_logit_scale: float = 100.0
    """Upper bound of the (exponentiated) logit scale."""
    layer_decay: float = 1.0
    """Each block of the image tower learns at so many times the rate of the block behind it; the
    embeddings before the first block count as one. 1 gives all the same rate."""
    text_layer_decay: float = 1.0
    """The same for the text tower, whose token and position tables count as one block."""
    layer_rule: Literal["beit", "eva_clip"] = "beit"
    """What `layer_decay` and the weight decay spare. beit: all before the blocks learns slowest.
    eva_clip, as EVA-CLIP's and LLM2CLIP's released code: the class embedding and the norm before
    the blocks learn at the full rate, and the image's position table has no weight decay."""
    ema_samples: int = 0
    """Half-life, in pairs, of a running average of the weights (training/ema.py); 0 keeps none."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("image_learning_rate", "text_learning_rate", "base_batch_size",
                     "min_learning_rate", "warmup_samples", "cooldown_samples", "weight_decay",
                     "max_grad_norm", "ema_samples"):  # fmt: skip
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} cannot be negative, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(
                f"warmup is a share of the run and must lie in [0, 1], got {self.warmup}: "
                "warmup_samples gives it in pairs"
            )
        for name in ("layer_decay", "text_layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                "beta1 and beta2 must be at least 0 and below 1, got "
                f"{self.betas[0]} and {self.betas[1]}"
            )
        if self.schedule == "cooldown" and (self.cooldown_samples < 1 or self.cooldown_power <= 0):
            raise ValueError(
                "schedule cooldown needs cooldown_samples and a cooldown_power above 0"
            )
        if not 0 < self.min_logit_scale <= self.max_logit_scale:
            raise ValueError(
                "min_logit_scale must be above 0 and at most max_logit_scale, got "
                f"{self.min_logit_scale} and {self.max_logit_scale}"
            )

    @property
    def betas(self) -> tuple[float, float]:
        """`beta1` and `beta2`, the optimiser's own where none is given."""
        own = _BETAS[self.optimizer]
        return (
            own[0] if self.beta1 is None else self.beta1,
            own[1] if self.beta2 is None else self.beta2,
        )

    def warmup_pairs(self, total_samples: int) -> int:
        """Pairs of the warm-up of a run, or stage, of so many pairs."""
        if self.warmup_samples is not None:
            return self.warmup_samples
        return round(self.warmup * total_samples)

    def check_lengths(self, total_samples: int, where: str = "") -> None:
        """Raise ValueError where warm-up and cooldown do not fit into the run or stage `where`."""
        warmup = self.warmup_pairs(total_samples)
        if warmup > total_samples:
            raise ValueError(
                f"{where}optim.warmup_samples {warmup:,} is longer than the run of "
                f"{total_samples:,} pairs: give the warm-up as a share of it, such as "
                f"--{where}optim.warmup 0.1 --{where}optim.warmup-samples None, or at most that "
                "many pairs"
            )
        cooldown = self.cooldown_samples if self.schedule == "cooldown" else 0
        if warmup + cooldown > total_samples:
            raise ValueError(
                f"{where}optim.cooldown_samples {cooldown:,} and a warm-up of {warmup:,} pairs do "
                f"not fit into the run of {total_samples:,} pairs: shorten one of them"
            )

    def peak(self, batch_size: int) -> float:
        """Highest learning rate of a run with this global batch."""
        return self.learning_rate * (
            batch_size / self.base_batch_size if self.base_batch_size else 1
        )
