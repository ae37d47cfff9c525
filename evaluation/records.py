"""Scores as CLIP_benchmark writes them, and as lines and a table for a terminal.

`metrics` have CLIP_benchmark's names; `image_retrieval` there is text to image here, and
`text_retrieval` image to text. What it has no name for is told by its own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from tessera.evaluation.scores import (
    LINEAR_PROBE,
    NUM_PROMPTS,
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

RETRIEVAL_DEFINITION = {
    "image_to_text": "a picture is the query; the share of pictures with one of their own captions "
    "among the first k (text_retrieval_recall in CLIP_benchmark)",
    "text_to_image": "a caption is the query; the share of captions with their own picture among "
    "the first k (image_retrieval_recall in CLIP_benchmark)",
}
_SELECTION = "image_caption_selection"
"""CLIP_benchmark's name of the task that SugarCrepe and Winoground set."""
_PROBE = ("lp_acc1", "lp_acc5", "lp_mean_per_class_recall")


def records(scores: Sequence[Score], model: str, pretrained: str) -> list[dict[str, Any]]:
    """One record for each data set and task, in the fields of CLIP_benchmark's json files.

    Args:
        scores: of rank 0.
        model: name of the architecture.
        pretrained: where its weights come from.
    """
    return [
        {
            "dataset": dataset,
            "model": model,
            "pretrained": pretrained,
            "task": task,
            "metrics": metrics,
            "language": "en",
        }
        for dataset, task, metrics in _metrics(scores)
    ]


def lines(scores: Sequence[Score]) -> list[str]:
    """A line for each score, beside what guessing gives."""
    return [
        *(_zero_shot_line(rows) for rows in of_task(scores, ZERO_SHOT)),
        *(line for rows in of_task(scores, RETRIEVAL) for line in _retrieval_lines(rows)),
        *(_probe_line(r) for r in of_task(scores, LINEAR_PROBE) if _PROBE[0] in r),
        *(line for rows in of_task(scores, LINEAR_PROBE) for line in _few_shot_lines(rows)),
        *(_sugarcrepe_line(rows, files) for rows, files in sugarcrepe_sets(scores)),
        *(_winoground_line(rows) for rows in of_task(scores, WINOGROUND)),
    ]


def table(found: list[dict[str, Any]]) -> str:
    """Records as a table: data set, task, metric, value; shares in percent."""
    rows = [
        (record["dataset"], record["task"], name, _shown(name, value))
        for record in found
        for name, value in record["metrics"].items()
        if not isinstance(value, list)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    return "\n".join(
        "  ".join(
            (*(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=False)), row[3].rjust(9))
        )
        for row in rows
    )


def _zero_shot_line(rows: SetScores) -> str:
    acc1, prompts = rows["acc1"], rows[NUM_PROMPTS]
    return (
        f"zero-shot {rows.dataset}: {acc1.value:.1%} of {acc1.n} images right, "
        f"{num_classes(acc1)} classes, {prompts.value:.0f} prompts, chance {acc1.chance:.1%}"
    )


def _retrieval_lines(rows: SetScores) -> Iterator[str]:
    for direction in RECALL_OF:
        recalls = rows.recalls(direction)
        shown = ", ".join(f"R@{k} {each.value:.1%}" for k, each in recalls.items())
        chance = ", ".join(f"{each.chance:.1%}" for each in recalls.values())
        yield f"{direction} {rows.dataset}: {shown} (chance {chance})"


def _probe_line(rows: SetScores) -> str:
    acc1, decay = rows["lp_acc1"], rows[WEIGHT_DECAY]
    return (
        f"linear probe {rows.dataset}: {acc1.value:.1%} of {acc1.n} images right, "
        f"trained on {decay.n}, weight decay {decay.value:.1e}, chance {acc1.chance:.1%}"
    )


def _few_shot_lines(rows: SetScores) -> Iterator[str]:
    for shots in shots_of(rows):
        draws, chance = rows.draws(few_shot_metric(shots)), rows[few_shot_metric(shots)].chance
        yield (
            f"{shots}-shot {rows.dataset}: {fmean(draws):.1%}, standard deviation "
            f"{_spread(draws):.1%} over {len(draws)} draws, chance {chance:.1%}"
        )


def _sugarcrepe_line(rows: SetScores, files: Sequence[SetScores]) -> str:
    found = averages(rows)
    macro = found.pop("macro")
    found.pop("micro")
    parts = ", ".join(f"{name} {each.value:.1%}" for name, each in found.items())
    return (
        f"SugarCrepe {rows.dataset}: {macro.value:.1%} mean of {len(files)} files "
        f"({parts}), chance {macro.chance:.1%}"
    )


def _winoground_line(rows: SetScores) -> str:
    text, image, group = (rows[metric] for metric in ("text_acc", "image_acc", "acc"))
    return (
        f"Winoground {rows.dataset}: text {text.value:.1%}, image {image.value:.1%}, "
        f"group {group.value:.1%} of {group.n} (chance 25%, 25%, 16.7%)"
    )


def _metrics(scores: Sequence[Score]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Data set, task and metrics of everything measured."""
    for task in (ZERO_SHOT, RETRIEVAL):
        for rows in of_task(scores, task):
            yield rows.dataset, task, _shares(rows)
    probes = of_task(scores, LINEAR_PROBE)
    for rows in probes:
        if _PROBE[0] in rows:
            found = {metric: rows[metric].value for metric in (*_PROBE, WEIGHT_DECAY)}
            yield rows.dataset, LINEAR_PROBE, {**found, "fewshot_k": -1}
    for rows in probes:
        for shots in shots_of(rows):
            draws = rows.draws(few_shot_metric(shots))
            found = {"lp_acc1": fmean(draws), "lp_acc1_std": _spread(draws)}
            found |= {"lp_acc1_of_draws": draws, "fewshot_k": shots}
            yield rows.dataset, LINEAR_PROBE, found
    sugarcrepe = sugarcrepe_sets(scores)
    for rows, files in sugarcrepe:
        # CLIP_benchmark's name, unless there are several to tell apart.
        own = "sugar_crepe" if len(sugarcrepe) == 1 else rows.dataset
        for each in files:
            name = each.dataset.rpartition("/")[2]
            yield f"{own}/{name}", _SELECTION, {"acc": each["acc"].value}
        yield own, _SELECTION, _shares(rows)
    for rows in of_task(scores, WINOGROUND):
        yield rows.dataset, _SELECTION, _shares(rows)


def _shares(rows: SetScores) -> dict[str, float]:
    return {
        metric: each[0].value for metric, each in rows.rows.items() if each[0].chance is not None
    }


def _spread(shares: Sequence[float]) -> float:
    """Standard deviation; 0 of a single one."""
    return stdev(shares) if len(shares) > 1 else 0.0


def _shown(name: str, value: float) -> str:
    if name == "weight_decay":
        return f"{value:.1e}"
    return str(value) if name == "fewshot_k" else f"{100 * value:.2f}"
