"""The budgets of a GPU visit, read off the records of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Records = Mapping[str, Mapping[str, Any]]
"""The record of every step that was done, by the step's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A figure that is promised."""

    what: str
    """In words, with its unit."""
    limit: float
    """The promise."""
    at_least: bool
    """Whether more is better."""
    read: Callable[[Records], float]
    """The figure; KeyError where its step was not done."""

    def words(self) -> str:
        """The promise in words."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A budget beside what was measured."""

    budget: Budget
    """What was promised."""
    value: float | None
    """What was measured; None if it was not."""

    @property
    def word(self) -> str:
        """kept, missed or not measured."""
        if self.value is None:
            return "not measured"
        budget = self.budget
        kept = self.value >= budget.limit if budget.at_least else self.value <= budget.limit
        return "kept" if kept else "missed"


_STEP = "step-vit-b-16"
_MASK = "cluster, budget @0.03"
_END_TO_END = ("end-to-end-cpu-decode", "end-to-end-cuda-decode")


def _fastest(records: Records) -> Mapping[str, Any]:
    """End to end with the decoder that is faster here, which is what a user would take."""
    found = [records[name] for name in _END_TO_END if name in records]
    if not found:
        raise KeyError(_END_TO_END[0])
    return max(found, key=lambda record: record["pairs_per_s"])


def _ratio(other: str) -> Callable[[Records], float]:
    return lambda records: records[_STEP]["ratios"]["ours_50"][other]["median"]


def _mask_share(records: Records) -> float:
    """Device time of the cluster mask over that of the step, an image, at the largest batch."""
    rows = [row for row in records["masks"]["masks"] if row["strategy"] == _MASK]
    cost_us = max(rows, key=lambda row: row["batch_size"])["us_per_image"]
    step_us = 1e6 / records[_STEP]["sides"]["ours_50"]["pairs_per_s"]["median"]
    return 100 * cost_us / step_us


BUDGETS = (
    Budget(
        what="ViT-B/16, 50% masked, end to end from JPEG files, pairs/s",
        limit=6000,
        at_least=True,
        read=lambda records: _fastest(records)["pairs_per_s"],
    ),
    Budget(
        what="its data wait, % of the step",
        limit=2,
        at_least=False,
        read=lambda records: 100 * _fastest(records)["data_wait_share"],
    ),
    Budget(
        what="ViT-B/16 step, 50% masked, % of the measured matrix rate",
        limit=45,
        at_least=True,
        read=lambda records: 100 * records[_STEP]["sides"]["ours_50"]["utilisation"],
    ),
    Budget(
        what="the same step over open_clip unmasked, times",
        limit=2.0,
        at_least=True,
        read=_ratio("open_clip"),
    ),
    Budget(
        what="over the padded form, times",
        limit=1.4,
        at_least=True,
        read=_ratio("padded_cluster"),
    ),
    Budget(
        what="over open_clip with patch dropout 0.5, times",
        limit=1.15,
        at_least=True,
        read=_ratio("open_clip_drop50"),
    ),
    Budget(
        what="cluster mask, % of that step",
        limit=1,
        at_least=False,
        read=_mask_share,
    ),
)
"""Those of an H200; on another GPU only the ratios mean the same."""


def judge(records: Records) -> list[Verdict]:
    """Every budget beside its figure."""
    return [Verdict(budget=budget, value=_value(budget, records)) for budget in BUDGETS]


def _value(budget: Budget, records: Records) -> float | None:
    try:
        return float(budget.read(records))
    except KeyError:
        return None
