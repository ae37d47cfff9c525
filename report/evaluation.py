"""The page of tools/evaluate.py: the scores, what changed, and every class of labelled sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.evaluation.scores import Score
from tessera.report.numbers import count, percent
from tessera.report.page import Headline, now, write
from tessera.report.score_tables import confusion_bars, score_tables

_MOST_CLASSES = 1000
"""On the page; the file of --out has all."""
_MOST_HEADLINES = 5


def write_evaluation_page(
    path: Path,
    *,
    model: str,
    scores: Sequence[Score],
    confusions: Sequence[tuple[str, str, int]],
    result: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        model: the architecture and its weights.
        scores: everything that was measured.
        confusions: (true class, predicted class, images), the commonest first.
        result: what the tool writes to --out.
        before: what an earlier call wrote there.
    """
    write(
        path,
        "evaluation",
        title=f"Evaluation of {Path(result['checkpoint']).name or result['checkpoint']}",
        created=now(),
        model=model,
        result=result,
        before=before,
        headlines=list(_headlines(scores))[:_MOST_HEADLINES],
        tables=score_tables(scores),
        changes=list(_changes(result, before)) if before else [],
        classes=[_classes(place, rows, before) for place, rows in result["per_class"].items()],
        most_classes=_MOST_CLASSES,
        confusions=confusion_bars(confusions),
    )


def _headlines(scores: Sequence[Score]) -> Iterator[Headline]:
    names = {
        "acc1": "zero-shot top-1",
        "image_retrieval_recall@1": "text to image R@1",
        "text_retrieval_recall@1": "image to text R@1",
        "lp_acc1": "linear probe",
        "acc_macro": "SugarCrepe",
    }
    for row in scores:
        if row.metric in names:
            against = f"chance {percent(row.chance or 0)}, {count(row.n)} questions"
            label = f"{names[row.metric]}, {Path(row.dataset).name}"
            yield Headline(percent(row.value), label, against)


def _shares(result: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    """Shares by data set, task and metric."""
    return {
        (record["dataset"], record["task"], name): value
        for record in result["results"]
        for name, value in record["metrics"].items()
        if isinstance(value, float) and name != "weight_decay" and not name.endswith("_std")
    }


def _changes(result: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """(data set and metric, before, after, change in points) of what both measured."""
    old = _shares(before)
    for (dataset, task, name), value in _shares(result).items():
        was = old.get((dataset, task, name))
        if was is not None:
            points = f"{100 * (value - was):+.1f}".replace("-", "\N{MINUS SIGN}")
            words = name.replace("_", " ")
            yield f"{words}, {Path(dataset).name}", percent(was), percent(value), points


def _classes(
    place: str, rows: Sequence[tuple[str, int, int]], before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Recall of every class, the lowest first."""
    old = (before or {}).get("per_class", {}).get(place, ())
    was = {name: right / images for name, images, right in old}
    ordered = sorted(rows, key=lambda row: (row[2] / row[1], row[0]))
    return {
        "place": place,
        "has_before": bool(was),
        "rows": [
            (name, right / images, count(images), percent(was[name]) if name in was else "")
            for name, images, right in ordered
        ],
    }
