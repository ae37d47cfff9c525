"""Tables of what the features are good for: linear probes, few images, captions told apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from evaluation.page.charts import share_bar
from evaluation.page.document import table
from evaluation.page.markup import Markup, join, tag
from evaluation.page.numbers import count, percent
from evaluation.report.data import (
    FewShotResult,
    LinearProbeResult,
    ReportData,
    SugarCrepeResult,
    WinogroundResult,
)


def feature_tables(data: ReportData) -> list[Markup]:
    """Return a table for each kind of result that there is."""
    return [
        *([_linear_probe(data.linear_probe)] if data.linear_probe else []),
        *([_few_shot(data.few_shot)] if data.few_shot else []),
        *(_sugarcrepe(result) for result in data.sugarcrepe),
        *([_winoground(data.winoground)] if data.winoground else []),
    ]


def _linear_probe(results: Sequence[LinearProbeResult]) -> Markup:
    heads = ("Linear probe", "Top-1", "Top-5", "Mean recall", "Chance", "Trained on", "Tested", "")
    rows = [
        (
            each.dataset,
            tag("strong", percent(each.acc1)),
            percent(each.acc5),
            percent(each.mean_per_class_recall),
            percent(each.chance),
            f"{count(each.num_train)} of {each.train}",
            count(each.num_images),
            share_bar(each.acc1, each.chance),
        )
        for each in results
    ]
    return _noted(heads, rows, "Logistic regression on frozen features. The tick is chance.")


def _few_shot(results: Sequence[FewShotResult]) -> Markup:
    heads = ("Few images", "A class", "Top-1", "Lowest", "Highest", "Draws", "Chance", "")
    rows = [
        (
            each.dataset,
            count(each.shots),
            tag("strong", percent(mean := statistics.fmean(each.acc1))),
            percent(min(each.acc1)),
            percent(max(each.acc1)),
            count(len(each.acc1)),
            percent(each.chance),
            share_bar(mean, each.chance),
        )
        for each in results
    ]
    note = "Logistic regression on a few images of each class; mean over draws of these."
    return _noted(heads, rows, note)


def _sugarcrepe(result: SugarCrepeResult) -> Markup:
    heads = (f"SugarCrepe, {result.dataset}", "Right", "Pictures", "")
    averages = [*result.categories.items(), ("mean of all files", result.macro)]
    rows = [
        *(
            (
                name.replace("_", " "),
                percent(share),
                count(result.counts[name]),
                share_bar(share, result.chance),
            )
            for name, share in result.accuracies.items()
        ),
        *(
            (name, tag("strong", percent(share)), "", share_bar(share, result.chance))
            for name, share in averages
        ),
    ]
    note = (
        "Share of pictures nearer to their caption than to one with an object, attribute or "
        f"relation changed. Bold: means over files; over all pictures {percent(result.micro)}. "
        "The tick is chance."
    )
    return _noted(heads, rows, note)


def _winoground(results: Sequence[WinogroundResult]) -> Markup:
    heads = ("Winoground", "Text", "Image", "Group", "Examples")
    rows = [
        (
            each.dataset,
            percent(each.text_score),
            percent(each.image_score),
            percent(each.group_score),
            count(each.num_examples),
        )
        for each in results
    ]
    note = "Guessing gives 25%, 25% and 16.7%."
    return _noted(heads, rows, note)


def _noted(heads: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Markup:
    return join([table(heads, rows, "scores"), tag("p", note, class_="note")])
