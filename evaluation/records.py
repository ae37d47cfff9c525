"""Results as CLIP_benchmark writes them, and as lines and a table for a terminal.

`metrics` have CLIP_benchmark's names; `image_retrieval` there is text to image here, and
`text_retrieval` image to text. What it has no name for is told by its own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from evaluation.suite import Outcome

RETRIEVAL_DEFINITION = {
    "image_to_text": "a picture is the query; the share of pictures with one of their own captions "
    "among the first k (text_retrieval_recall in CLIP_benchmark)",
    "text_to_image": "a caption is the query; the share of captions with their own picture among "
    "the first k (image_retrieval_recall in CLIP_benchmark)",
}


def records(outcome: Outcome, model: str, pretrained: str) -> list[dict[str, Any]]:
    """One record for each data set and task, in the fields of CLIP_benchmark's json files.

    Args:
        outcome: of rank 0.
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
        for dataset, task, metrics in _metrics(outcome)
    ]


def lines(outcome: Outcome) -> list[str]:
    """A line for each score, beside what guessing gives."""
    found = [
        f"zero-shot {score.dataset}: {score.acc1:.1%} of {score.num_images} images right, "
        f"{score.num_classes} classes, {score.num_prompts} prompts, chance {score.chance:.1%}"
        for score in (run.result for run in outcome.zero_shot)
    ]
    for score in (run.scores for run in outcome.retrieval):
        for name in RETRIEVAL_DEFINITION:
            recalls = getattr(score, name)
            shown = ", ".join(f"R@{k} {recall:.1%}" for k, recall in recalls.items())
            chance = ", ".join(f"{c:.1%}" for c in score.chance[name].values())
            found.append(f"{name} {score.dataset}: {shown} (chance {chance})")
    found += [
        f"linear probe {probe.dataset}: {probe.acc1:.1%} of {probe.num_images} images right, "
        f"trained on {probe.num_train}, weight decay {probe.weight_decay:.1e}, "
        f"chance {probe.chance:.1%}"
        for probe in outcome.linear_probe
    ]
    found += [
        f"{few.shots}-shot {few.dataset}: {fmean(few.acc1):.1%}, standard deviation "
        f"{_spread(few.acc1):.1%} over {len(few.acc1)} draws, chance {few.chance:.1%}"
        for few in outcome.few_shot
    ]
    for sugar in outcome.sugarcrepe:
        parts = ", ".join(f"{name} {share:.1%}" for name, share in sugar.categories.items())
        found.append(
            f"SugarCrepe {sugar.dataset}: {sugar.macro:.1%} mean of {len(sugar.accuracies)} files "
            f"({parts}), chance {sugar.chance:.1%}"
        )
    found += [
        f"Winoground {wino.dataset}: text {wino.text_score:.1%}, image {wino.image_score:.1%}, "
        f"group {wino.group_score:.1%} of {wino.num_examples} (chance 25%, 25%, 16.7%)"
        for wino in outcome.winoground
    ]
    return found


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


def _metrics(outcome: Outcome) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Data set, task and metrics of everything measured."""
    for score in (run.result for run in outcome.zero_shot):
        names = ("acc1", "acc5", "mean_per_class_recall")
        yield (
            score.dataset,
            "zeroshot_classification",
            {name: getattr(score, name) for name in names},
        )
    for score in (run.scores for run in outcome.retrieval):
        found = {}
        for k in score.image_to_text:
            found[f"image_retrieval_recall@{k}"] = score.text_to_image[k]
            found[f"text_retrieval_recall@{k}"] = score.image_to_text[k]
        yield score.dataset, "zeroshot_retrieval", found
    for probe in outcome.linear_probe:
        yield (
            probe.dataset,
            "linear_probe",
            {
                "lp_acc1": probe.acc1,
                "lp_acc5": probe.acc5,
                "lp_mean_per_class_recall": probe.mean_per_class_recall,
                "weight_decay": probe.weight_decay,
                "fewshot_k": -1,
            },
        )
    for few in outcome.few_shot:
        yield (
            few.dataset,
            "linear_probe",
            {
                "lp_acc1": fmean(few.acc1),
                "lp_acc1_std": _spread(few.acc1),
                "lp_acc1_of_draws": list(few.acc1),
                "fewshot_k": few.shots,
            },
        )
    for sugar in outcome.sugarcrepe:
        # CLIP_benchmark's name, unless there are several to tell apart.
        own = "sugar_crepe" if len(outcome.sugarcrepe) == 1 else sugar.dataset
        for name, share in sugar.accuracies.items():
            yield f"{own}/{name}", "image_caption_selection", {"acc": share}
        averages = {**sugar.categories, "macro": sugar.macro, "micro": sugar.micro}
        yield (
            own,
            "image_caption_selection",
            {f"acc_{name}": share for name, share in averages.items()},
        )
    for wino in outcome.winoground:
        yield (
            wino.dataset,
            "image_caption_selection",
            {
                "text_acc": wino.text_score,
                "image_acc": wino.image_score,
                "acc": wino.group_score,
            },
        )


def _spread(shares: Sequence[float]) -> float:
    """Standard deviation; 0 of a single one."""
    return stdev(shares) if len(shares) > 1 else 0.0


def _shown(name: str, value: float) -> str:
    if name == "weight_decay":
        return f"{value:.1e}"
    return str(value) if name == "fewshot_k" else f"{100 * value:.2f}"
