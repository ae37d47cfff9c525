"""Scores as rows: every table, record, line and curve of an evaluation is a view of them.

Metrics have CLIP_benchmark's names where it has one, and so have tasks but SugarCrepe's and
Winoground's. Rows that agree in all but their value are draws of the same score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

ZERO_SHOT = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
LINEAR_PROBE = "linear_probe"
SUGARCREPE = "sugarcrepe"
WINOGROUND = "winoground"

RECALL_OF = {
    "image_to_text": "text_retrieval_recall",
    "text_to_image": "image_retrieval_recall",
}
"""The metric of a direction; CLIP_benchmark names what is found, a direction its query first."""
NUM_BAD = "num_bad"
"""Pictures left out because they could not be decoded."""
NUM_PROMPTS = "num_prompts"
"""Texts that the vectors of all classes come from."""
WEIGHT_DECAY = "weight_decay"
"""Of a probe, chosen on a part of its training set; `n` is that of the pictures trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One figure of a model on one data set."""

    dataset: str
    """Data set that was tested on, as a person named it; of SugarCrepe's files `FOLDER/FILE`."""
    task: str
    """One of the tasks above."""
    metric: str
    """What the value is, such as acc1."""
    value: float
    """A share, 0 to 1; where `chance` is None a count or a setting."""
    chance: float | None
    """Share that guessing gives; None where the value is no share."""
    n: int
    """Questions that the share is of: pictures, captions or examples."""
    train: str = ""
    """Of a probe: the set that it was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetScores:
    """All rows of one task on one data set."""

    dataset: str
    """As `Score.dataset`."""
    train: str
    """As `Score.train`."""
    rows: Mapping[str, tuple[Score, ...]]
    """By metric; more than one where it was measured in several draws."""

    def __contains__(self, metric: str) -> bool:
        """Whether there is such a row."""
        return metric in self.rows

    def __getitem__(self, metric: str) -> Score:
        """The row of a metric, the first draw's where there are several."""
        return self.rows[metric][0]

    def draws(self, metric: str) -> list[float]:
        """Values of all draws."""
        return [row.value for row in self.rows[metric]]

    def recalls(self, direction: str) -> dict[int, Score]:
        """Recall at k by k, of a direction of `RECALL_OF`."""
        start = f"{RECALL_OF[direction]}@"
        return {
            int(metric.removeprefix(start)): rows[0]
            for metric, rows in self.rows.items()
            if metric.startswith(start)
        }


def of_task(scores: Iterable[Score], task: str) -> list[SetScores]:
    """The rows of one task, data set after data set in the order of their first rows."""
    found: dict[tuple[str, str], dict[str, tuple[Score, ...]]] = {}
    for row in scores:
        if row.task == task:
            rows = found.setdefault((row.dataset, row.train), {})
            rows[row.metric] = (*rows.get(row.metric, ()), row)
    return [
        SetScores(dataset=dataset, train=train, rows=rows)
        for (dataset, train), rows in found.items()
    ]


def few_shot_metric(shots: int) -> str:
    """The metric of a probe that was trained on a few pictures of each class."""
    return f"lp_acc1_{shots}_shot"


def shots_of(rows: SetScores) -> list[int]:
    """Numbers of pictures of each class that few-shot probes were trained on."""
    ends = few_shot_metric(0).split("0")
    return [
        int(metric.removeprefix(ends[0]).removesuffix(ends[1]))
        for metric in rows.rows
        if metric.startswith(ends[0]) and metric.endswith(ends[1])
    ]


def renamed(scores: Sequence[Score], names: Mapping[str, str]) -> list[Score]:
    """The same with other names of data sets, where `names` has one."""
    return [
        replace(
            row, dataset=names.get(row.dataset, row.dataset), train=names.get(row.train, row.train)
        )
        for row in scores
    ]


def curves(scores: Sequence[Score]) -> dict[str, float]:
    """What is drawn of an evaluation while a run goes on: a name and a share each."""
    found: dict[str, float] = {}
    for rows in of_task(scores, ZERO_SHOT):
        found[f"top-1, {rows.dataset}"] = rows["acc1"].value
    for rows in of_task(scores, RETRIEVAL):
        for direction in RECALL_OF:
            name = f"{direction.replace('_', ' ')} R@1, {rows.dataset}"
            found[name] = rows.recalls(direction)[1].value
    for rows in (each for each in of_task(scores, LINEAR_PROBE) if "lp_acc1" in each):
        found[f"linear probe, {rows.dataset}"] = rows["lp_acc1"].value
    for rows in of_task(scores, SUGARCREPE):
        if "acc_macro" in rows:
            found[f"SugarCrepe, {rows.dataset}"] = rows["acc_macro"].value
    return found


def to_json(scores: Sequence[Score]) -> dict[str, Any]:
    """Plain values, as evaluation.json and evaluations.jsonl hold them."""
    return {"scores": [asdict(row) for row in scores]}


def from_json(record: Mapping[str, Any]) -> list[Score]:
    """Scores out of such a record, also out of one that the first edition wrote."""
    if "scores" in record:
        return [Score(**row) for row in record["scores"]]
    return list(_of_the_first_edition(record))


def _of_the_first_edition(record: Mapping[str, Any]) -> Iterator[Score]:
    """Rows of what is shown of a run: other figures of such a record have no use any more."""
    for each in record.get("zero_shot", ()):
        yield _first_edition_row(each, ZERO_SHOT, "acc1", each["acc1"])
    for each in record.get("retrieval", ()):
        sizes = {"image_to_text": "num_images", "text_to_image": "num_texts"}
        for direction, metric in RECALL_OF.items():
            for k, recall in each[direction].items():
                yield Score(
                    dataset=each["dataset"],
                    task=RETRIEVAL,
                    metric=f"{metric}@{k}",
                    value=recall,
                    chance=each["chance"][direction][k],
                    n=each.get(sizes[direction], 0),
                )
    for each in record.get("linear_probe", ()):
        yield _first_edition_row(each, LINEAR_PROBE, "lp_acc1", each["acc1"])
    for each in record.get("few_shot", ()):
        for draw in each["acc1"]:
            yield _first_edition_row(each, LINEAR_PROBE, few_shot_metric(each["shots"]), draw)
    for each in record.get("sugarcrepe", ()):
        yield _first_edition_row(each, SUGARCREPE, "acc_macro", each["macro"])


def _first_edition_row(each: Mapping[str, Any], task: str, metric: str, value: float) -> Score:
    return Score(
        dataset=each["dataset"],
        task=task,
        metric=metric,
        value=value,
        chance=each["chance"],
        n=each.get("num_images") or sum(each.get("counts", {}).values()),
        train=each.get("train", ""),
    )


def mean_recall(rows: SetScores) -> tuple[float, float, int]:
    """Mean recall over both directions and all k, what guessing gives, and the fewest queries."""
    found = [row for direction in RECALL_OF for row in rows.recalls(direction).values()]
    return (
        fmean(row.value for row in found),
        fmean(row.chance or 0.0 for row in found),
        min(row.n for row in found),
    )


def sugarcrepe_sets(scores: Sequence[Score]) -> list[tuple[SetScores, list[SetScores]]]:
    """The averages of each folder of SugarCrepe, and those of its files."""
    found = of_task(scores, SUGARCREPE)
    return [
        (rows, [each for each in found if each.dataset.rpartition("/")[0] == rows.dataset])
        for rows in found
        if "acc_macro" in rows
    ]


def averages(rows: SetScores) -> dict[str, Score]:
    """SugarCrepe's averages by their names: add, replace, swap, macro, micro."""
    return {metric.removeprefix("acc_"): each[0] for metric, each in rows.rows.items()}


def num_classes(accuracy: Score) -> int:
    """Classes to choose from, out of what guessing gives."""
    return round(1 / accuracy.chance) if accuracy.chance else 0
