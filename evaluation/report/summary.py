"""The head of the page: a few large numbers and a paragraph that says what came of the run."""

from __future__ import annotations

import math

import numpy as np

from evaluation.page.charts import Numbers
from evaluation.page.document import Headline
from evaluation.page.numbers import count, decimal, percent, standard_error, times
from evaluation.report.data import ReportData, RetrievalScores, ZeroShotResult
from evaluation.report.series import broke_at, data_wait, pairs_per_s, per_step, trend


def headlines(data: ReportData) -> list[Headline]:
    """Return the three to five numbers that tell how the run went, those that were measured."""
    found = [
        _zero_shot_headline(data),
        _retrieval_headline(data),
        _hidden_headline(data),
        _speed_headline(data),
        _loss_headline(data),
    ]
    return [headline for headline in found if headline is not None]


def summary(data: ReportData) -> str:
    """Return the paragraph: what ran on what, what it saw, how good and how fast it was."""
    sentences = [
        _ran(data),
        _saw(data),
        *(_classified(result) for result in data.zero_shot[:1]),
        *(_retrieved(scores) for scores in data.retrieval_scores[:1]),
        _was_fast(data),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def against_chance(value: float, chance: float, num_trials: int) -> str:
    """Return how a share compares with guessing, and say so where the difference may be luck."""
    error = standard_error(chance, num_trials)
    if math.isfinite(error) and abs(value - chance) <= 2 * error:
        return f"no different from chance ({percent(chance)})"
    ratio = times(value, chance)
    if ratio is None:
        return "chance not known"
    if value < chance:
        return f"below chance ({percent(chance)})"
    return f"{ratio} chance ({percent(chance)})"


def loss_ends(data: ReportData) -> tuple[float, float] | None:
    """Return the (first, last) smoothed loss, or None where no loss is finite."""
    line = trend(data.steps.samples, data.steps.loss)[1]
    line = line[np.isfinite(line)]
    return (float(line[0]), float(line[-1])) if len(line) else None


def hidden_shares(data: ReportData) -> Numbers:
    """Return the share of patches hidden [images], of the larger draw or else of the gallery."""
    ratios = np.asarray(data.mask_ratios, dtype=np.float64)
    ratios = ratios[np.isfinite(ratios)]
    return ratios if len(ratios) else np.array([1 - item.visible.mean() for item in data.gallery])


def headline_recall(scores: RetrievalScores) -> tuple[int, float] | None:
    """Return (k, text-to-image recall at k) for k = 5, or else the smallest k measured."""
    recalls = scores.text_to_image
    if not recalls:
        return None
    k = 5 if 5 in recalls else min(recalls)
    return k, recalls[k]


def _chance(scores: RetrievalScores, direction: str, k: int) -> float:
    return scores.chance.get(direction, {}).get(k, math.nan)


def _zero_shot_headline(data: ReportData) -> Headline | None:
    if not data.zero_shot:
        return None
    result = data.zero_shot[0]
    return Headline(
        value=percent(result.acc1),
        label=f"zero-shot top-1, {result.dataset}",
        against=against_chance(result.acc1, result.chance, result.num_images),
    )


def _retrieval_headline(data: ReportData) -> Headline | None:
    found = headline_recall(data.retrieval_scores[0]) if data.retrieval_scores else None
    if found is None:
        return None
    scores, (k, recall) = data.retrieval_scores[0], found
    return Headline(
        value=percent(recall),
        label=f"text to image R@{k}, {scores.dataset}",
        against=against_chance(recall, _chance(scores, "text_to_image", k), scores.num_texts),
    )


def _hidden_headline(data: ReportData) -> Headline | None:
    shares = hidden_shares(data)
    if not len(shares):
        return None
    against = "against none in plain CLIP"
    if data.gallery:
        num_patches = len(data.gallery[0].visible)
        against = f"{(1 - shares.mean()) * num_patches:.0f} of {num_patches} seen, on average"
    return Headline(
        value=percent(float(shares.mean())), label="of the patches hidden", against=against
    )


def _speed_headline(data: ReportData) -> Headline | None:
    speed = pairs_per_s(data.steps)
    if not math.isfinite(speed):
        return None
    wait = data_wait(data.steps)
    against = f"{percent(wait)} of it waiting for data" if math.isfinite(wait) else "median step"
    value = count(speed) if speed >= 100 else f"{speed:.3g}"
    return Headline(value=value, label="pairs a second", against=against)


def _loss_headline(data: ReportData) -> Headline | None:
    ends = loss_ends(data)
    if ends is None:
        return None
    broke = broke_at(data.steps)
    if broke is not None:
        against = f"not finite from step {count(broke)} on; {decimal(ends[1])} before"
        return Headline(value="diverged", label="training loss", against=against)
    against = f"from {decimal(ends[0])}"
    if data.loss_at_chance is not None:
        against += f"; {decimal(data.loss_at_chance)} is chance"
    return Headline(value=decimal(ends[1]), label="training loss", against=against)


def _ran(data: ReportData) -> str:
    steps = data.steps
    if not len(data.steps.step):
        status = f" It {data.status}." if data.status != "finished" else ""
        return f"This run of the {data.recipe} recipe logged no training step.{status}"
    text = f"{data.model or 'The model'} was trained with the {data.recipe} recipe"
    text += f" on {data.dataset}" if data.dataset else ""
    text += f", using {data.device}" if data.device else ""
    text += f": {count(float(steps.samples[-1]))} image-text pairs"
    batch = per_step(steps)
    text += f", {count(batch)} a step." if batch >= 1 else "."
    if data.status != "finished":
        text += f" The run {data.status}: what follows comes from the part that ran."
    broke = broke_at(steps)
    if broke is not None:
        text += f" Its loss was not a finite number from step {count(broke)} on: training failed."
    return text


def _saw(data: ReportData) -> str:
    shares = hidden_shares(data)
    if not len(shares):
        return ""
    low, high = percent(float(shares.min())), percent(float(shares.max()))
    spread = "in every picture" if low == high else f"{low} to {high} from one picture to another"
    return f"{percent(float(shares.mean()))} of the image patches were hidden from it ({spread})."


def _classified(result: ZeroShotResult) -> str:
    versus = against_chance(result.acc1, result.chance, result.num_images)
    return (
        f"Zero-shot on {result.dataset}, it names the right one of {count(result.num_classes)} "
        f"classes for {percent(result.acc1)} of {count(result.num_images)} images, {versus}."
    )


def _retrieved(scores: RetrievalScores) -> str:
    found = headline_recall(scores)
    if found is None:
        return ""
    k, recall = found
    versus = against_chance(recall, _chance(scores, "text_to_image", k), scores.num_texts)
    place = "as its first choice" if k == 1 else f"among its first {k} choices"
    return (
        f"On {scores.dataset}, it has the right picture out of {count(scores.num_images)} {place} "
        f"for {percent(recall)} of the captions, {versus}."
    )


def _was_fast(data: ReportData) -> str:
    speed = pairs_per_s(data.steps)
    if not math.isfinite(speed):
        return ""
    value = count(speed) if speed >= 100 else f"{speed:.3g}"
    wait = data_wait(data.steps)
    text = f"Training ran at {value} pairs a second"
    return (
        f"{text} and spent {percent(wait)} of that time waiting for data."
        if wait >= 0
        else f"{text}."
    )
