"""The scores of a run, out of its evaluation.json."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

_RECALL = {"image_to_text": "image to text", "text_to_image": "text to image"}
_QUERIES = {"image_to_text": "num_images", "text_to_image": "num_texts"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One figure on held-out data."""

    value: float
    """Share, 0 to 1."""
    chance: float
    """What guessing gives."""
    num_queries: int
    """Held-out questions that the share is of; 0 where a record does not say."""
    is_main: bool
    """Whether it sums up a data set: of these and no others the text speaks, since of many figures
    some differ by chance."""


def scores_of(evaluation: dict[str, Any]) -> dict[str, Score]:
    """All scores of a run, by name, the main one of each data set first.

    Zero-shot and linear probe: top-1. Retrieval: the mean of recall at 1, 5 and 10 in both
    directions. SugarCrepe: the mean over its files.

    Args:
        evaluation: content of evaluation.json.
    """
    zero_shot, retrieval = evaluation["zero_shot"], evaluation["retrieval"]
    found: dict[str, Score] = {}
    for each in zero_shot:
        where = _where(each["dataset"], len(zero_shot))
        found[f"top-1{where}"] = Score(
            value=each["acc1"],
            chance=each["chance"],
            num_queries=each.get("num_images", 0),
            is_main=True,
        )
    for each in retrieval:
        where = _where(each["dataset"], len(retrieval))
        recalls = {
            f"{words} R@{k}{where}": Score(
                value=recall,
                chance=each["chance"][direction][k],
                num_queries=each.get(_QUERIES[direction], 0),
                is_main=False,
            )
            for direction, words in _RECALL.items()
            for k, recall in each[direction].items()
        }
        found[f"mean recall{where}"] = Score(
            value=statistics.fmean(score.value for score in recalls.values()),
            chance=statistics.fmean(score.chance for score in recalls.values()),
            num_queries=min(score.num_queries for score in recalls.values()),
            is_main=True,
        )
        found |= recalls
    return found | _of_features(evaluation)


def _of_features(evaluation: dict[str, Any]) -> dict[str, Score]:
    """Linear probes and SugarCrepe, which a run may have left out."""
    kinds = (("linear_probe", "linear probe", "acc1"), ("sugarcrepe", "SugarCrepe", "macro"))
    found: dict[str, Score] = {}
    for kind, words, field in kinds:
        results = evaluation.get(kind, [])
        for each in results:
            name = f"{words}{_where(each['dataset'], len(results))}"
            num_queries = each.get("num_images") or sum(each.get("counts", {}).values())
            found[name] = Score(
                value=each[field], chance=each["chance"], num_queries=num_queries, is_main=True
            )
    return found


def _where(dataset: str, count: int) -> str:
    """A data set's name where a kind of score has several."""
    return f", {dataset}" if count > 1 else ""
