"""Options of the losses, and what sets the members of the FastCLIP family apart."""

from __future__ import annotations

import dataclasses
from typing import Literal

LossKind = Literal[
    "clip",
    "siglip",
    "sogclr",
    "isogclr",
    "fastclip_v0",
    "fastclip_v1",
    "fastclip_v2",
    "fastclip_v3",
]
"""Names of the losses."""
GammaSchedule = Literal["constant", "cosine"]
"""Course of the inner learning rate after the first pass."""
SameCaption = Literal["negative", "ignore", "positive"]
"""What another pair of the batch is to an image whose caption it has."""
MultiText = Literal["per_version", "all_texts"]
"""Candidates of an image with several texts: those of one version, or those of all."""
TemperatureRule = Literal["model", "constant", "global", "individual"]
"""The model's logit scale; a constant; one learned by the loss; one learned for each anchor."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A member of the FastCLIP family (arXiv 2407.01445), with its published settings."""

    rule: TemperatureRule
    """Where the temperature comes from."""
    schedule: GammaSchedule
    """Course of the inner learning rate."""
    gamma: float
    """Inner learning rate that the schedule ends at, of 1."""
    temperature: float = 0.07
    """Temperature at the start."""
    rho: float = 0.0
    """Weight of the temperature in the robust objectives."""
    learning_rate: float = 0.0
    """Of the temperature."""


METHODS: dict[str, Method] = {
    "sogclr": Method(rule="constant", schedule="constant", gamma=0.8),
    "isogclr": Method(
        rule="individual",
        schedule="constant",
        gamma=0.8,
        temperature=0.03,
        rho=7.0,
        learning_rate=0.0133,
    ),
    "fastclip_v0": Method(rule="model", schedule="cosine", gamma=0.2),
    "fastclip_v1": Method(rule="constant", schedule="cosine", gamma=0.2),
    "fastclip_v2": Method(
        rule="individual",
        schedule="cosine",
        gamma=0.2,
        temperature=0.03,
        rho=7.0,
        learning_rate=0.0133,
    ),
    "fastclip_v3": Method(rule="global", schedule="cosine", gamma=0.2, rho=8.5, learning_rate=1e-4),
}
"""The family by name. Rho and learning rate of v3 are those for CC12M, of v2 for CC3M."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The loss of a run. None stands for the method's published value (see `METHODS`)."""

    kind: LossKind = "clip"
    """Which loss."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all pairs; for `clip` alone."""
    multi_text: MultiText = "per_version"
    """`clip` with several texts of an image (LaCLIP's multi-text loss). per_version: the mean over
    the versions of CLIP's loss on one text each. all_texts: an image chooses among all texts of the
    batch, and its own share the target. With one text both are CLIP's loss."""
    same_caption: SameCaption = "negative"
    """What a pair is to another one of the batch with the same caption. negative: a negative like
    all others, as published. ignore: neither. positive: a further positive; of `clip` the target is
    shared evenly, of `siglip` the answer is yes; the FastCLIP family has no such form."""
    tile_size: int = 2048
    """Rows and columns of the similarity matrix held at once, pairs. A batch that fits in one
    tile is computed as a whole, and so is every batch with 0."""
    gamma: float | None = None
    """Inner learning rate of the per-sample estimates at the end of its schedule, of 1."""
    gamma_schedule: GammaSchedule | None = None
    """Course of the inner learning rate; it is 1 throughout the first pass in any case."""
    gamma_decay_passes: int = 16
    """Length of the cosine, passes over the data. The authors advise half of the run."""
    temperature: float | None = None
    """Temperature at the start, where the loss owns it."""
    temperature_min: float = 0.01
    """Least temperature that learning reaches."""
    temperature_max: float = 1.0
    """Largest temperature that learning reaches."""
    temperature_learning_rate: float | None = None
    """Of the temperature: of log(1/temperature) for v3, of the temperatures themselves for v2
    and iSogCLR."""
    temperature_betas: tuple[float, float] = (0.9, 0.98)
    """Decay of Adam's two moments for the temperature; published with ViT towers."""
    temperature_adam_eps: float = 1e-6
    """Added to Adam's denominator for the temperature; published with ViT towers."""
    rho: float | None = None
    """Weight of the temperature in the robust objectives: larger keeps it smaller. Published
    values were tuned with `doubled_temperature_gradient`."""
    eps: float = 1e-14
    """Added to the per-sample estimates inside the logarithm. 1e-6 was used on LAION-400M."""
    doubled_temperature_gradient: bool = False
    """Count the similarities' part of the global temperature's gradient twice, as the released
    code does (v0 and v3)."""

    def __post_init__(self) -> None:
        """Refuse what no loss can be built from.

        Raises:
            ValueError: naming the option.
        """
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.label_smoothing and self.kind != "clip":
            raise ValueError(f"label_smoothing is an option of clip, not of {self.kind}")
        if self.tile_size < 0:
            raise ValueError(f"tile_size must be 0 or more, got {self.tile_size}")
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        self._check_same_caption()
        if self.gamma_decay_passes < 1:
            raise ValueError(f"gamma_decay_passes must be 1 or more, got {self.gamma_decay_passes}")
        if not 0 < self.temperature_min <= self.temperature_max:
            raise ValueError("temperature_min must lie above 0 and not above temperature_max")
        low, high = self.temperature_min, self.temperature_max
        if self.temperature is not None and not low <= self.temperature <= high:
            raise ValueError(f"temperature must lie in [{low}, {high}], got {self.temperature}")
        if self.eps <= 0:
            raise ValueError(f"eps must lie above 0, got {self.eps}")

    def _check_same_caption(self) -> None:
        if self.same_caption == "negative":
            return
        if self.same_caption == "positive" and self.kind not in ("clip", "siglip"):
            raise ValueError(
                f"same_caption positive is for clip and siglip: the estimates of {self.kind} know "
                "one positive of each anchor. Take same_caption ignore"
            )
        if self.label_smoothing:
            raise ValueError(
                f"same_caption {self.same_caption} says what equal captions are, and "
                "label_smoothing makes all of them a part of the target: leave one of them out"
            )

    def method(self) -> Method:
        """The family's member with this configuration's own values in place of the published.

        Raises:
            ValueError: `kind` is none of the family.
        """
        if self.kind not in METHODS:
            raise ValueError(
                f"{self.kind} keeps no estimates: choose one of {', '.join(sorted(METHODS))}"
            )
        own = {
            "gamma": self.gamma,
            "schedule": self.gamma_schedule,
            "temperature": self.temperature,
            "rho": self.rho,
            "learning_rate": self.temperature_learning_rate,
        }
        given = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(METHODS[self.kind], **given)
