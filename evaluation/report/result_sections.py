"""The sections on what the model saw and learned: gallery, evaluation, retrieval examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tessera.evaluation.page.charts import Axis, Frame, axis, bar_chart, share_bar
from tessera.evaluation.page.document import table
from tessera.evaluation.page.markup import Markup, join, shorten, tag
from tessera.evaluation.page.numbers import count, percent, standard_error
from tessera.evaluation.records import num_classes
from tessera.evaluation.report.data import (
    GalleryItem,
    Numbers,
    Picture,
    ReportData,
    Result,
    RetrievalExample,
)
from tessera.evaluation.report.feature_sections import feature_tables
from tessera.evaluation.report.pictures import cluster_panel, crop_panel, picture_tag, visible_panel
from tessera.evaluation.report.summary import hidden_shares
from tessera.evaluation.scores import RETRIEVAL, ZERO_SHOT, Score, SetScores, of_task

_NUM_SHOWN = 5
_DIRECTIONS = (("text_to_image", "Text to image"), ("image_to_text", "Image to text"))


def gallery(data: ReportData) -> Markup:
    """Return the images beside what the model saw of them, and how the share hidden varies."""
    if not data.gallery and not len(hidden_shares(data)):
        return tag("p", "No images were kept from this run.", class_="none")
    parts: list[Markup] = []
    if data.gallery:
        parts.append(tag("p", _gallery_note(data.gallery), class_="note"))
        cards = [_card(item, f"crop-{number}") for number, item in enumerate(data.gallery)]
        parts.append(tag("div", *cards, class_="gallery"))
    ratios = np.asarray(data.mask_ratios, dtype=np.float64)
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios):
        parts.append(_mask_ratio_figure(ratios))
    return join(parts)


def evaluation(data: ReportData) -> Markup:
    """Return the tables of scores and the classes most often taken for each other."""
    labelled, pairs = (of_task(data.scores, task) for task in (ZERO_SHOT, RETRIEVAL))
    parts = [
        _zero_shot_table(labelled) if labelled else None,
        _retrieval_table(pairs) if pairs else None,
        *feature_tables(data.scores),
        _confusion_table(data.confusions) if data.confusions else None,
    ]
    if not any(parts):
        return tag("p", "This run was not evaluated.", class_="none")
    return join(parts)


def retrieval(data: ReportData) -> Markup:
    """Return the examples of each direction, with a tally of how they went."""
    if not data.retrieval:
        return tag("p", "No retrieval examples were kept from this run.", class_="none")
    parts: list[Markup] = [tag("p", _tally(data.retrieval), class_="note")]
    for kind, title in _DIRECTIONS:
        examples = [example for example in data.retrieval if example.kind == kind]
        if examples:
            parts += [tag("h3", title), *(_example(example) for example in examples)]
    return join(parts)


def _gallery_note(items: Sequence[GalleryItem]) -> str:
    text = "Each crop beside the patches that reached the model. Blank patches were never computed."
    if any(len(item.anchors) for item in items):
        text += (
            " In the middle, every cluster of similar patches has a colour and its anchor an"
            " outline; what has no colour is in no cluster."
        )
    return text


def _card(item: GalleryItem, name: str) -> Markup:
    panels = [(crop_panel(item, name), "crop")]
    if len(item.anchors):
        panels.append((cluster_panel(item, name), f"{len(item.anchors)} clusters"))
    seen, total = int(item.visible.sum()), len(item.visible)
    panels.append((visible_panel(item, name), f"{seen} of {total} seen"))
    figures = [tag("figure", panel, tag("figcaption", note)) for panel, note in panels]
    tokens = None
    if item.tokens:
        pieces = join((tag("span", token) for token in item.tokens), " ")
        tokens = tag(
            "details",
            tag("summary", f"{len(item.tokens)} text tokens"),
            tag("p", pieces, class_="tokens"),
        )
    return tag(
        "article",
        tag("div", *figures, class_="panels"),
        tag("p", shorten(item.caption, 240) or "(no caption)", class_="caption", dir="auto"),
        tag("p", item.key, class_="key", dir="auto"),
        tokens,
        class_="card",
    )


def _mask_ratio_figure(ratios: Numbers) -> Markup:
    low = max(0.0, math.floor(ratios.min() * 20) / 20)
    high = min(1.0, math.ceil(ratios.max() * 20 + 1e-9) / 20)
    if high <= low:
        low, high = max(0.0, low - 0.05), min(1.0, low + 0.05)
    edges = np.linspace(low, high, max(2, round((high - low) * 100)) + 1)
    heights = np.histogram(np.clip(ratios, low, high), bins=edges)[0]
    along = axis(low, high)
    labels = [f"{100 * value:.4g}%" for value in along.ticks]
    note = (
        f"Mean {percent(float(ratios.mean()))}, lowest {percent(float(ratios.min()))}, highest "
        f"{percent(float(ratios.max()))}, over {count(len(ratios))} images."
    )
    frame = Frame(
        summary=f"How many images have which share of their patches hidden. {note}",
        x=Axis(low=along.low, high=along.high, ticks=along.ticks, labels=labels),
        y=axis(0.0, float(heights.max()) * 1.08, most=4),
        height="middle",
    )
    chart = bar_chart(frame, edges, heights)
    return tag(
        "figure",
        tag("h3", "Share of patches hidden, image by image"),
        chart,
        tag("figcaption", note),
    )


def _zero_shot_table(sets: Sequence[SetScores]) -> Markup:
    heads = ("Zero-shot", "Top-1", "Top-5", "Mean recall", "Chance", "Classes", "Images", "")
    rows = [
        (
            each.dataset,
            _with_error(acc1 := each["acc1"]),
            percent(each["acc5"].value),
            percent(each["mean_per_class_recall"].value),
            percent(acc1.chance or 0.0),
            count(num_classes(acc1)),
            count(acc1.n),
            share_bar(acc1.value, acc1.chance),
        )
        for each in sets
    ]
    note = "\N{PLUS-MINUS SIGN} covers 95% of what another draw of as many images would give. "
    note += "The bar is top-1, the tick chance; mean recall is over classes."
    return join([table(heads, rows, "scores"), tag("p", note, class_="note")])


def _with_error(acc1: Score) -> Markup:
    error = 1.96 * standard_error(acc1.value, acc1.n)
    value = tag("strong", percent(acc1.value))
    if not math.isfinite(error):
        return value
    return join([value, tag("small", f" \N{PLUS-MINUS SIGN} {100 * error:.1f}")])


def _retrieval_table(sets: Sequence[SetScores]) -> Markup:
    found = [{kind: each.recalls(kind) for kind, _ in _DIRECTIONS} for each in sets]
    ks = sorted({k for recalls in found for each in recalls.values() for k in each})
    heads = ("Retrieval", "Query", *(f"R@{k}" for k in ks), "Queries")
    rows = []
    for each, recalls in zip(sets, found, strict=True):
        for kind, title in _DIRECTIONS:
            cells = [_recall(recalls[kind].get(k)) for k in ks]
            queries = max((row.n for row in recalls[kind].values()), default=0)
            rows.append((each.dataset, title.lower(), *cells, count(queries)))
    note = "R@k: share of queries with a right answer among the first k. In grey: guessing."
    return join([table(heads, rows, "scores"), tag("p", note, class_="note")])


def _recall(recall: Score | None) -> Markup:
    if recall is None:
        return tag("small", "not measured")
    guess = tag("small", f" {percent(recall.chance)}") if recall.chance is not None else None
    return join([tag("strong", percent(recall.value)), guess])


def _confusion_table(confusions: Sequence[tuple[str, str, int]]) -> Markup:
    shown = sorted(confusions, key=lambda each: -each[2])[:10]
    most = max(number for _, _, number in shown)
    rows = [
        tag(
            "tr",
            tag("th", f"{true} \N{RIGHTWARDS ARROW} {predicted}", scope="row", dir="auto"),
            tag("td", share_bar(number / most if most > 0 else 0.0), class_="wide"),
            tag("td", count(number), class_="number"),
        )
        for true, predicted, number in shown
    ]
    title = tag("h3", "Most often mistaken")
    note = tag(
        "p",
        "True class \N{RIGHTWARDS ARROW} what the model said, and in how many images.",
        class_="note",
    )
    return join([title, note, tag("table", tag("tbody", *rows), class_="bars plain")])


def _first_right(example: RetrievalExample) -> int | None:
    ranks = (rank for rank, result in enumerate(example.results[:_NUM_SHOWN], 1) if result[2])
    return next(ranks, None)


def _tally(examples: Sequence[RetrievalExample]) -> str:
    ranks = [_first_right(example) for example in examples]
    first, missed = ranks.count(1), ranks.count(None)
    later = len(ranks) - first - missed
    return (
        f"{len(ranks)} examples picked to show both sides, not a sample to count: the right "
        f"answer is first in {first}, further down the first {_NUM_SHOWN} in {later}, missing in "
        f"{missed}. "
        "The number under an answer is its similarity to the query."
    )


def _example(example: RetrievalExample) -> Markup:
    rank = _first_right(example)
    if rank is None:
        verdict, look = f"\N{MULTIPLICATION X} not among the first {_NUM_SHOWN}", "missed"
    else:
        place = "right first" if rank == 1 else f"right at rank {rank}"
        verdict, look = f"\N{CHECK MARK} {place}", "found"
    shown = example.results[:_NUM_SHOWN]
    results = [_result(result, rank) for rank, result in enumerate(shown, 1)]
    query = (
        picture_tag(example.query_image, "the query")
        if example.query_image is not None
        else tag(
            "p", shorten(example.query_text, 300) or "(empty text)", class_="quote", dir="auto"
        )
    )
    key = tag("p", example.query_key, class_="key", dir="auto") if example.query_key else None
    return tag(
        "article",
        tag("header", query, key, tag("p", verdict, class_=f"verdict {look}")),
        tag("ol", *results, class_="found-things"),
        _answer(example.answer) if rank is None and example.answer is not None else None,
        class_=f"example {example.kind.replace('_', '-')}",
    )


def _result(result: Result, rank: int) -> Markup:
    found, score, is_right = result
    mark = "\N{CHECK MARK} right" if is_right else "\N{MULTIPLICATION X}"
    note = tag(
        "span",
        tag("b", mark),
        f" {score:.3f}" if math.isfinite(score) else " no score",
        class_="mark",
        aria_label=f"{'right' if is_right else 'wrong'}, score {score:.3f}",
    )
    thing = _thing(found, f"answer {rank}, {'right' if is_right else 'wrong'}")
    return tag("li", thing, note, class_="right" if is_right else "wrong")


def _answer(answer: Picture | str) -> Markup:
    return tag(
        "div", tag("p", "The right answer:"), _thing(answer, "the right answer"), class_="answer"
    )


def _thing(found: Picture | str, description: str) -> Markup:
    if isinstance(found, str):
        return tag("p", shorten(found, 240) or "(empty text)", dir="auto")
    return picture_tag(found, description, largest=192)
