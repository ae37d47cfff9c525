"""The scores of a run by name, out of its evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.evaluation.scores import (
    LINEAR_PROBE,
    RECALL_OF,
    RETRIEVAL,
    SUGARCREPE,
    ZERO_SHOT,
    Score,
    from_json,
    mean_recall,
    of_task,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure on held-out data."""

    value: float
    """Share, 0 to 1."""
    chance: float
    """What guessing gives."""
    n: int
    """Held-out questions that the share is of; 0 where a record does not say."""
    is_main: bool
    """Whether it sums up a data set: of these and no others the text speaks, since of many figures
    some differ by chance."""


def figures_of(evaluation: Mapping[str, Any]) -> dict[str, Figure]:
    """All figures of a run, by name, the main one of each data set first.

    Zero-shot and linear probe: top-1. Retrieval: the mean of recall at 1, 5 and 10 in both
    directions. SugarCrepe: the mean over its files.

    Args:
        evaluation: content of evaluation.json.
    """
    scores = from_json(evaluation)
    found = _main("top-1", [s for s in scores if s.task == ZERO_SHOT and s.metric == "acc1"])
    sets = of_task(scores, RETRIEVAL)
    for rows in sets:
        where = _where(rows.dataset, len(sets))
        value, chance, n = mean_recall(rows)
        found[f"mean recall{where}"] = Figure(value=value, chance=chance, n=n, is_main=True)
        for direction in RECALL_OF:
            for k, recall in rows.recalls(direction).items():
                name = f"{direction.replace('_', ' ')} R@{k}{where}"
                found[name] = _figure(recall, is_main=False)
    probes = [s for s in scores if s.task == LINEAR_PROBE and s.metric == "lp_acc1"]
    crepes = [s for s in scores if s.task == SUGARCREPE and s.metric == "acc_macro"]
    return found | _main("linear probe", probes) | _main("SugarCrepe", crepes)


def _main(name: str, scores: list[Score]) -> dict[str, Figure]:
    return {
        f"{name}{_where(each.dataset, len(scores))}": _figure(each, is_main=True) for each in scores
    }


def _figure(score: Score, *, is_main: bool) -> Figure:
    return Figure(value=score.value, chance=score.chance or 0.0, n=score.n, is_main=is_main)


def _where(dataset: str, count: int) -> str:
    """A data set's name where a kind of score has several."""
    return f", {dataset}" if count > 1 else ""
