"""Means, spreads, and whether a difference is more than another seed would give."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Of all intervals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Values of several seeds."""

    values: tuple[float, ...]
    """One for each seed."""

    @property
    def mean(self) -> float:
        """Their mean; NaN where there is none."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Their standard deviation (of a sample); NaN of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean of all seeds lies by Student's t, or None of fewer than two values."""
        count = len(self.values)
        if count < 2:
            return None
        error = student_t(count - 1) * self.deviation / math.sqrt(count)
        return self.mean - error, self.mean + error

    @property
    def is_not_zero(self) -> bool:
        """Whether the interval leaves out zero."""
        interval = self.interval
        return interval is not None and (interval[0] > 0 or interval[1] < 0)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Differences to the baseline, seed by seed: what both owe to the seed cancels."""
    return Spread(values=tuple(a - b for a, b in zip(values, baseline, strict=True)))


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The value that |t| stays below with this probability, by bisection.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: the probability, 0 to 1.
    """
    low, high = 0.0, 1.0
    while _probability(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, freedom) < confidence else (low, middle)
    return high


def _probability(t: float, freedom: int) -> float:
    """P(|T| <= t), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (step - 1) / step
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
