"""Scores as tables: a group of rows by task, one table each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tessera.evaluation.scores import (
    LINEAR_PROBE,
    RECALL_OF,
    RETRIEVAL,
    WEIGHT_DECAY,
    WINOGROUND,
    ZERO_SHOT,
    Score,
    SetScores,
    averages,
    few_shot_metric,
    num_classes,
    of_task,
    shots_of,
    sugarcrepe_sets,
)
from tessera.report.numbers import count, percent, standard_error

_TICK = "The tick on a bar is what guessing gives."


class Cell(NamedTuple):
    """What stands in a column."""

    text: str
    """The figure."""
    small: str = ""
    """In grey beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """One line of a table."""

    name: str
    """Of the data set, the query or the file."""
    cells: Sequence[Cell]
    """One for each column."""
    bar: tuple[float, float] | None = None
    """(share, what guessing gives)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    """One kind of score."""

    heads: Sequence[str]
    """Of the names and of each column."""
    rows: Sequence[ScoreRow]
    """In the order of the scores."""
    note: str
    """What the figures mean."""
    num_bold: int = 1
    """Columns from the left that are the result."""


def score_tables(scores: Sequence[Score]) -> list[ScoreTable]:
    """Return a table for each kind of score that there is."""
    probes = of_task(scores, LINEAR_PROBE)
    found = [
        _zero_shot(of_task(scores, ZERO_SHOT)),
        _retrieval(of_task(scores, RETRIEVAL)),
        _linear_probe([rows for rows in probes if "lp_acc1" in rows]),
        _few_shot([(rows, shots) for rows in probes for shots in shots_of(rows)]),
        *(_sugarcrepe(rows, files) for rows, files in sugarcrepe_sets(scores)),
        _winoground(of_task(scores, WINOGROUND)),
    ]
    return [table for table in found if table.rows]


def _zero_shot(sets: Sequence[SetScores]) -> ScoreTable:
    rows = []
    for each in sets:
        acc1 = each["acc1"]
        others = (_share(each, metric) for metric in ("acc5", "mean_per_class_recall"))
        texts = (*others, percent(acc1.chance or 0), count(num_classes(acc1)), count(acc1.n))
        rows.append(_row(each.dataset, acc1, texts, error=True))
    return ScoreTable(
        heads=("Zero-shot", "Top-1", "Top-5", "Mean recall", "Chance", "Classes", "Images"),
        rows=rows,
        note="\N{PLUS-MINUS SIGN} covers 95% of what another draw of as many images would give. "
        f"The bar is top-1; mean recall is over classes. {_TICK}",
    )


def _retrieval(sets: Sequence[SetScores]) -> ScoreTable:
    found = [
        (each.dataset, kind, each.recalls(kind)) for each in sets for kind in reversed(RECALL_OF)
    ]
    ks = sorted({k for _, _, recalls in found for k in recalls})
    rows = [
        ScoreRow(
            name=f"{kind.replace('_', ' ')}, {dataset}",
            cells=[
                *(_recall(recalls.get(k)) for k in ks),
                Cell(count(max((row.n for row in recalls.values()), default=0))),
            ],
        )
        for dataset, kind, recalls in found
    ]
    return ScoreTable(
        heads=("Retrieval", *(f"R@{k}" for k in ks), "Queries"),
        rows=rows,
        note="R@k: share of queries with a right answer among the first k. In grey: guessing.",
        num_bold=len(ks),
    )


def _recall(recall: Score | None) -> Cell:
    if recall is None:
        return Cell("not measured")
    return Cell(percent(recall.value), "" if recall.chance is None else percent(recall.chance))


def _linear_probe(sets: Sequence[SetScores]) -> ScoreTable:
    rows = []
    for each in sets:
        acc1 = each["lp_acc1"]
        texts = (
            *(_share(each, metric) for metric in ("lp_acc5", "lp_mean_per_class_recall")),
            percent(acc1.chance or 0),
            f"{count(each[WEIGHT_DECAY].n)} of {each.train}"
            if WEIGHT_DECAY in each
            else each.train,
            count(acc1.n),
        )
        rows.append(_row(each.dataset, acc1, texts))
    return ScoreTable(
        heads=("Linear probe", "Top-1", "Top-5", "Mean recall", "Chance", "Trained on", "Tested"),
        rows=rows,
        note=f"Logistic regression on frozen features. {_TICK}",
    )


def _few_shot(sets: Sequence[tuple[SetScores, int]]) -> ScoreTable:
    rows = []
    for each, shots in sets:
        draws, chance = each.draws(few_shot_metric(shots)), each[few_shot_metric(shots)].chance or 0
        mean = statistics.fmean(draws)
        texts = (percent(mean), percent(min(draws)), percent(max(draws)), count(len(draws)))
        cells = [*map(Cell, texts), Cell(percent(chance))]
        name = f"{each.dataset}, {shots} a class"
        rows.append(ScoreRow(name=name, cells=cells, bar=(mean, chance)))
    return ScoreTable(
        heads=("Few images", "Top-1", "Lowest", "Highest", "Draws", "Chance"),
        rows=rows,
        note="Logistic regression on a few images of each class; mean over draws of these.",
    )


def _sugarcrepe(sums: SetScores, files: Sequence[SetScores]) -> ScoreTable:
    found = averages(sums)
    macro, micro = found.pop("macro"), found.pop("micro", None)
    rows = [
        _row(
            each.dataset.rpartition("/")[2].replace("_", " "), each["acc"], (count(each["acc"].n),)
        )
        for each in files
    ]
    rows += [_row(f"mean of {name}", each, ("",)) for name, each in found.items()]
    rows.append(_row("mean of all files", macro, ("",)))
    over = f" Over all pictures: {percent(micro.value)}." if micro else ""
    return ScoreTable(
        heads=(f"SugarCrepe, {sums.dataset}", "Right", "Pictures"),
        rows=rows,
        note="Share of pictures nearer to their caption than to one with an object, attribute or "
        f"relation changed.{over} {_TICK}",
    )


def _winoground(sets: Sequence[SetScores]) -> ScoreTable:
    return ScoreTable(
        heads=("Winoground", "Text", "Image", "Group", "Examples"),
        rows=[
            ScoreRow(
                name=each.dataset,
                cells=[
                    *(Cell(percent(each[m].value)) for m in ("text_acc", "image_acc", "acc")),
                    Cell(count(each["acc"].n)),
                ],
            )
            for each in sets
        ],
        note="Guessing gives 25%, 25% and 16.7%.",
        num_bold=3,
    )


def _share(rows: SetScores, metric: str) -> str:
    return percent(rows[metric].value) if metric in rows else "\N{EN DASH}"


def _row(name: str, score: Score, texts: Sequence[str], *, error: bool = False) -> ScoreRow:
    half = 1.96 * standard_error(score.value, score.n) if error else math.nan
    small = f"\N{PLUS-MINUS SIGN} {100 * half:.1f}" if math.isfinite(half) else ""
    cells = [Cell(percent(score.value), small), *map(Cell, texts)]
    return ScoreRow(name=name, cells=cells, bar=(score.value, score.chance or 0.0))


def confusion_bars(confusions: Sequence[tuple[str, str, int]]) -> list[tuple[str, float, str]]:
    """Return (what was taken for what, share of the commonest, how often).

    Args:
        confusions: (true class, predicted class, images).
    """
    most = max([1, *(number for _, _, number in confusions)])
    arrow = "\N{RIGHTWARDS ARROW}"
    return [(f"{true} {arrow} {said}", n / most, count(n)) for true, said, n in confusions]
