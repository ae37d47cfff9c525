"""Which flips and colour changes a run wants; pipeline/augment.py makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Flips and colour changes; all off unless asked for."""

    flip: float = 0.0
    """Probability of a mirror image."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Largest change of brightness, contrast and saturation, as factors, and of hue, in turns."""
    jitter_probability: float = 0.8
    """Share of the images whose colours are changed, where `jitter` is not zero."""
    greyscale: float = 0.0
    """Probability that all colour is taken out."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter_probability", "greyscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1, got {getattr(self, name)}")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            got = ", ".join(map(str, self.jitter))
            raise ValueError(f"jitter must not be negative, nor hue above 0.5, got {got}")

    @property
    def active(self) -> bool:
        """Whether anything is to be done at all."""
        jitters = self.jitter_probability > 0 and max(self.jitter) > 0
        return self.flip > 0 or self.greyscale > 0 or jitters
