"""Number series made fit for a chart: smoothed, thinned, with the range worth showing.

Shape legend: L logged values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tessera.report.charts import Numbers

Floats = NDArray[np.float64]


def no_numbers() -> Numbers:
    """Nothing was logged."""
    return np.zeros(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSeries:
    """What was logged while training, one entry per log line; values may be NaN or infinite."""

    step: Numbers = field(default_factory=no_numbers)
    """[L] optimiser steps done."""
    samples: Numbers = field(default_factory=no_numbers)
    """[L] image-text pairs seen since the start of the run, over all ranks."""
    loss: Numbers = field(default_factory=no_numbers)
    """[L] training loss."""
    lr: Numbers = field(default_factory=no_numbers)
    """[L] learning rate."""
    logit_scale: Numbers = field(default_factory=no_numbers)
    """[L] factor on the cosine similarities (not its logarithm)."""
    step_s: Numbers = field(default_factory=no_numbers)
    """[L] seconds one step took, waiting for data included."""
    data_wait_s: Numbers = field(default_factory=no_numbers)
    """[L] seconds of `step_s` in which the model waited for data."""
    evaluations: Sequence[tuple[int, str, float]] = ()
    """(samples seen, name of the score, value) of evaluations during the run. A series within
    0 .. 1 whose name does not contain "loss" is shown in percent."""

    def __post_init__(self) -> None:
        """Raise ValueError when the columns differ in length."""
        columns = ("step", "samples", "loss", "lr", "logit_scale", "step_s", "data_wait_s")
        lengths = {name: len(getattr(self, name)) for name in columns}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"StepSeries columns differ in length: {lengths}; log NaN where a value is missing"
            )


def trend(
    x: Numbers, y: Numbers, window: int | None = None, most: int = 480
) -> tuple[Floats, Floats]:
    """Return (x, running median of y) at no more than `most` evenly spread points.

    A median, since one spike must not lift a whole stretch of the line as it would lift a mean.

    Args:
        x: [L] places.
        y: [L] values; what is not finite is left out.
        window: Values in one median, centred, cut off at both ends; `window_for` by default.
        most: Points of the line.

    Returns:
        Two arrays; NaN where fewer than half of the values in the window are finite.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    half = (window or window_for(len(y))) // 2
    kept = np.unique(np.linspace(0, len(y) - 1, min(len(y), most)).round().astype(int))
    line = np.full(len(kept), np.nan)
    for place, middle in enumerate(kept):
        around = y[max(middle - half, 0) : middle + half + 1]
        finite = around[np.isfinite(around)]
        if len(finite) and 2 * len(finite) >= len(around):
            line[place] = np.median(finite)
    return x[kept], line


def broke_at(steps: StepSeries) -> float | None:
    """Return the step from which on no loss was finite, or None where the last one is."""
    finite = np.flatnonzero(np.isfinite(np.asarray(steps.loss, dtype=np.float64)))
    first_bad = int(finite[-1]) + 1 if len(finite) else 0
    return float(steps.step[first_bad]) if first_bad < len(steps.step) else None


def window_for(num_values: int) -> int:
    """Return an odd smoothing window of about a thirtieth of the series."""
    return max(1, num_values // 30) | 1


def thin(x: Numbers, y: Numbers, most: int = 480) -> tuple[Floats, Floats]:
    """Return at most about `most` points that keep the lowest and highest of every stretch.

    A stretch with nothing finite leaves one NaN, so that the line breaks there.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(y) <= most:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(y)), most // 2):
        finite = part[np.isfinite(y[part])]
        ends = (finite[y[finite].argmin()], finite[y[finite].argmax()]) if len(finite) else part[:1]
        kept.extend(sorted({int(index) for index in ends}))
    if np.isfinite(y[-1]) and kept[-1] != len(y) - 1:
        kept.append(len(y) - 1)
    return x[kept], y[kept]


def shown_range(values: Numbers) -> tuple[float, float]:
    """Return (low, high) for an axis: everything, unless a few outliers would flatten the rest."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    inner_low, inner_high = (float(edge) for edge in np.quantile(finite, [0.01, 0.99]))
    if high - low > 3 * (inner_high - inner_low) > 0:
        low, high = inner_low, inner_high
    return low, high


def per_step(steps: StepSeries) -> float:
    """Return the image-text pairs in one step (NaN when nothing was logged)."""
    if not len(steps.step):
        return float("nan")
    # A log may start after a resume and skip steps, so the slope is safer than the first entry.
    num_steps = float(steps.step[-1]) - float(steps.step[0])
    if num_steps > 0:
        return (float(steps.samples[-1]) - float(steps.samples[0])) / num_steps
    return float(steps.samples[-1]) / max(float(steps.step[-1]), 1.0)


def pairs_per_s(steps: StepSeries) -> float:
    """Return image-text pairs a second at the median step, which pauses do not move."""
    step_s = np.asarray(steps.step_s, dtype=np.float64)
    step_s = step_s[np.isfinite(step_s) & (step_s > 0)]
    return per_step(steps) / float(np.median(step_s)) if len(step_s) else float("nan")


def data_wait(steps: StepSeries) -> float:
    """Return the share of the logged step time spent waiting for data."""
    step_s = np.asarray(steps.step_s, dtype=np.float64)
    wait_s = np.asarray(steps.data_wait_s, dtype=np.float64)
    known = np.isfinite(step_s) & np.isfinite(wait_s)
    total_s = float(step_s[known].sum())
    return float(wait_s[known].sum()) / total_s if total_s > 0 else float("nan")
