"""The head of a run's page: a verdict, a few large numbers, and a paragraph on what came of it."""

from __future__ import annotations

import math

import numpy as np

from tessera.evaluation.scores import (
    RETRIEVAL,
    ZERO_SHOT,
    Score,
    SetScores,
    num_classes,
    of_task,
)
from tessera.report.charts import Numbers
from tessera.report.numbers import count, decimal, percent, standard_error, times
from tessera.report.page import Headline
from tessera.report.run_data import ReportData
from tessera.report.series import broke_at, data_wait, pairs_per_s, per_step, trend


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
        *(_classified(rows) for rows in of_task(data.scores, ZERO_SHOT)[:1]),
        *(_retrieved(rows) for rows in of_task(data.scores, RETRIEVAL)[:1]),
        _was_fast(data),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def verdict(data: ReportData) -> str:
    """Return whether the model learned, in a sentence."""
    broke = broke_at(data.steps)
    if broke is not None:
        return f"Training failed: the loss is not a finite number from step {count(broke)} on."
    found = [rows["acc1"] for rows in of_task(data.scores, ZERO_SHOT)]
    recalls = map(headline_recall, of_task(data.scores, RETRIEVAL))
    found += [each[1] for each in recalls if each is not None]
    above = [score for score in found if _is_above_chance(score)]
    if above:
        where = ", ".join(dict.fromkeys(score.dataset for score in above))
        less = "" if len(above) == len(found) else f" on {len(above)} of {len(found)} sets, {where}"
        return f"The model learned: it does better than guessing{less}."
    if found:
        return (
            "The model is no better than guessing: train it longer or on more data, or look for a "
            "fault in the captions."
        )
    ends = loss_ends(data)
    if ends is None:
        return "Nothing was learned: no training step was logged."
    fell = "fell" if ends[1] < ends[0] else "did not fall"
    return f"The loss {fell}, from {decimal(ends[0])} to {decimal(ends[1])}; nothing was evaluated."


def _is_above_chance(score: Score) -> bool:
    chance = score.chance or 0.0
    error = standard_error(chance, score.n)
    return score.value > chance + (2 * error if math.isfinite(error) else 0.0)


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


def headline_recall(rows: SetScores) -> tuple[int, Score] | None:
    """Return (k, text-to-image recall at k) for k = 5, or else the smallest k measured."""
    recalls = rows.recalls("text_to_image")
    if not recalls:
        return None
    k = 5 if 5 in recalls else min(recalls)
    return k, recalls[k]


def _versus(score: Score) -> str:
    chance = math.nan if score.chance is None else score.chance
    return against_chance(score.value, chance, score.n)


def _zero_shot_headline(data: ReportData) -> Headline | None:
    found = of_task(data.scores, ZERO_SHOT)
    if not found:
        return None
    acc1 = found[0]["acc1"]
    return Headline(
        value=percent(acc1.value),
        label=f"zero-shot top-1, {acc1.dataset}",
        against=_versus(acc1),
    )


def _retrieval_headline(data: ReportData) -> Headline | None:
    sets = of_task(data.scores, RETRIEVAL)
    found = headline_recall(sets[0]) if sets else None
    if found is None:
        return None
    k, recall = found
    return Headline(
        value=percent(recall.value),
        label=f"text to image R@{k}, {recall.dataset}",
        against=_versus(recall),
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


def _classified(rows: SetScores) -> str:
    acc1 = rows["acc1"]
    return (
        f"Zero-shot on {rows.dataset}, it names the right one of {count(num_classes(acc1))} "
        f"classes for {percent(acc1.value)} of {count(acc1.n)} images, {_versus(acc1)}."
    )


def _retrieved(rows: SetScores) -> str:
    found = headline_recall(rows)
    if found is None:
        return ""
    k, recall = found
    num_images = max((each.n for each in rows.recalls("image_to_text").values()), default=0)
    out_of = f" out of {count(num_images)}" if num_images else ""
    place = "as its first choice" if k == 1 else f"among its first {k} choices"
    return (
        f"On {rows.dataset}, it has the right picture{out_of} {place} "
        f"for {percent(recall.value)} of the captions, {_versus(recall)}."
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
