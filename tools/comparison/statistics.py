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
        from scipy.stats import t  # takes a second

        error = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * self.deviation / math.sqrt(count)
        return self.mean - error, self.mean + error

    @property
    def is_not_zero(self) -> bool:
        """Whether the interval leaves out zero."""
        interval = self.interval
        return interval is not None and (interval[0] > 0 or interval[1] < 0)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Differences to the baseline, seed by seed: what both owe to the seed cancels."""
    return Spread(values=tuple(a - b for a, b in zip(values, baseline, strict=True)))
