"""Tables of what the features are good for: linear probes, few images, captions told apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tessera.evaluation.page.charts import share_bar
from tessera.evaluation.page.document import table
from tessera.evaluation.page.markup import Markup, join, tag
from tessera.evaluation.page.numbers import count, percent
from tessera.evaluation.records import averages, sugarcrepe_sets
from tessera.evaluation.scores import (
    LINEAR_PROBE,
    WEIGHT_DECAY,
    WINOGROUND,
    Score,
    SetScores,
    few_shot_metric,
    of_task,
    shots_of,
)


def feature_tables(scores: Sequence[Score]) -> list[Markup]:
    """Return a table for each kind of score that there is."""
    probes = of_task(scores, LINEAR_PROBE)
    full = [rows for rows in probes if "lp_acc1" in rows]
    few = [(rows, shots) for rows in probes for shots in shots_of(rows)]
    pairs = of_task(scores, WINOGROUND)
    return [
        *([_linear_probe(full)] if full else []),
        *([_few_shot(few)] if few else []),
        *(_sugarcrepe(rows, files) for rows, files in sugarcrepe_sets(scores)),
        *([_winoground(pairs)] if pairs else []),
    ]


def _linear_probe(sets: Sequence[SetScores]) -> Markup:
    heads = ("Linear probe", "Top-1", "Top-5", "Mean recall", "Chance", "Trained on", "Tested", "")
    rows = [
        (
            each.dataset,
            tag("strong", percent((acc1 := each["lp_acc1"]).value)),
            percent(each["lp_acc5"].value),
            percent(each["lp_mean_per_class_recall"].value),
            percent(acc1.chance or 0.0),
            f"{count(each[WEIGHT_DECAY].n)} of {each.train}",
            count(acc1.n),
            share_bar(acc1.value, acc1.chance),
        )
        for each in sets
    ]
    return _noted(heads, rows, "Logistic regression on frozen features. The tick is chance.")


def _few_shot(sets: Sequence[tuple[SetScores, int]]) -> Markup:
    heads = ("Few images", "A class", "Top-1", "Lowest", "Highest", "Draws", "Chance", "")
    rows = []
    for each, shots in sets:
        draws = each.draws(few_shot_metric(shots))
        mean, chance = statistics.fmean(draws), each[few_shot_metric(shots)].chance
        rows.append(
            (
                each.dataset,
                count(shots),
                tag("strong", percent(mean)),
                percent(min(draws)),
                percent(max(draws)),
                count(len(draws)),
                percent(chance or 0.0),
                share_bar(mean, chance),
            )
        )
    note = "Logistic regression on a few images of each class; mean over draws of these."
    return _noted(heads, rows, note)


def _sugarcrepe(sums: SetScores, files: Sequence[SetScores]) -> Markup:
    heads = (f"SugarCrepe, {sums.dataset}", "Right", "Pictures", "")
    found = averages(sums)
    macro, micro = found.pop("macro"), found.pop("micro")
    rows = [
        *(
            (
                each.dataset.rpartition("/")[2].replace("_", " "),
                percent(each["acc"].value),
                count(each["acc"].n),
                share_bar(each["acc"].value, each["acc"].chance),
            )
            for each in files
        ),
        *(
            (name, tag("strong", percent(each.value)), "", share_bar(each.value, each.chance))
            for name, each in [*found.items(), ("mean of all files", macro)]
        ),
    ]
    note = (
        "Share of pictures nearer to their caption than to one with an object, attribute or "
        f"relation changed. Bold: means over files; over all pictures {percent(micro.value)}. "
        "The tick is chance."
    )
    return _noted(heads, rows, note)


def _winoground(sets: Sequence[SetScores]) -> Markup:
    heads = ("Winoground", "Text", "Image", "Group", "Examples")
    rows = [
        (
            each.dataset,
            *(percent(each[metric].value) for metric in ("text_acc", "image_acc", "acc")),
            count(each["acc"].n),
        )
        for each in sets
    ]
    note = "Guessing gives 25%, 25% and 16.7%."
    return _noted(heads, rows, note)


def _noted(heads: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Markup:
    return join([table(heads, rows, "scores"), tag("p", note, class_="note")])
