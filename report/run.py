"""The page of a run: what it learned, saw and cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tessera.report.charts import Chart, Line, histogram, line_chart
from tessera.report.numbers import count, decimal, duration, percent
from tessera.report.page import flatten, render, write
from tessera.report.run_data import NUM_RESULTS, ReportData, RetrievalExample
from tessera.report.run_words import headlines, hidden_shares, loss_ends, summary, verdict
from tessera.report.score_tables import confusion_bars, score_tables
from tessera.report.series import StepSeries, data_wait, shown_range, thin, trend, window_for


def write_report(data: ReportData, path: Path) -> None:
    """Write the page, whole or not at all.

    Args:
        data: what to show. Missing parts are named on the page.
        path: the file; its folder is made when missing, and an older file is replaced at once.
    """
    write(path, "run", **_content(data))


def render_report(data: ReportData) -> str:
    """Return the page as text; the same data gives the same text."""
    return render("run", **_content(data))


def _content(data: ReportData) -> dict[str, Any]:
    seconds = [(label, value) for label, value in data.time_split if math.isfinite(value)]
    kinds = {
        kind: [example for example in data.retrieval if example.kind == kind]
        for kind in ("text_to_image", "image_to_text")
    }
    return {
        "data": data,
        "title": data.title or "Untitled run",
        "created": data.created,
        "verdict": verdict(data),
        "summary": summary(data),
        "headlines": headlines(data),
        "learning": list(_learning(data)),
        "hidden": _hidden_shares(data),
        "tables": score_tables(data.scores),
        "confusions": confusion_bars(sorted(data.confusions, key=lambda each: -each[2])[:10]),
        "examples": {kind: found for kind, found in kinds.items() if found},
        "tally": _tally(data.retrieval),
        "seconds": _bars_of_time(seconds),
        "total_s": sum(value for _, value in seconds),
        "step_time": _step_time(data.steps),
        "settings": flatten(data.config),
    }


def _bars_of_time(seconds: Sequence[tuple[str, float]]) -> list[tuple[str, float, str, str]]:
    """(part, share of the longest, duration, share of all)."""
    longest = max([1e-9, *(value for _, value in seconds)])
    total = max(1e-9, sum(value for _, value in seconds))
    return [(n, value / longest, duration(value), percent(value / total)) for n, value in seconds]


def _learning(data: ReportData) -> Iterator[Chart]:
    """Charts of the loss, the learning rate, the logit scale and the scores on the way."""
    steps = data.steps
    if not len(steps.step):
        return
    drawn = [
        Line(x=x, y=y, faint=faint, width=1 if faint else 2)
        for faint, (x, y) in (
            (True, thin(steps.samples, steps.loss)),
            (False, trend(steps.samples, steps.loss)),
        )
    ]
    chance = None if data.loss_at_chance is None else (data.loss_at_chance, "chance")
    span = _loss_range(data)
    note = _loss_note(data, span)
    yield line_chart("loss", "Loss", note, drawn, y_range=span, unit="pairs seen", reference=chance)
    for name, title, values, note in (
        ("lr", "Learning rate", steps.lr, _lr_note(steps)),
        ("scale", "Logit scale", steps.logit_scale, "Factor on the cosine similarities."),
    ):
        x, y = thin(steps.samples, values)
        if np.isfinite(y).any():
            low, high = shown_range(values)
            span = (0.0 if name == "lr" else low - 0.06 * (high - low), high + 0.06 * (high - low))
            yield line_chart(name, title, note, [Line(x=x, y=y)], y_range=span, unit="pairs seen")
    yield from _evaluations(steps)


def _loss_range(data: ReportData) -> tuple[float, float]:
    low, high = shown_range(data.steps.loss)
    if data.loss_at_chance is not None and data.loss_at_chance < high + (high - low) / 2:
        high = max(high, data.loss_at_chance)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _loss_note(data: ReportData, span: tuple[float, float]) -> str:
    loss = np.asarray(data.steps.loss, dtype=np.float64)
    finite = np.isfinite(loss)
    ends = loss_ends(data)
    if ends is None:
        return f"No log line of {count(len(loss))} holds a finite loss: training failed at once."
    window = window_for(len(loss))
    text = f"From {decimal(ends[0])} to {decimal(ends[1])}."
    if window > 1:
        text += f" Thin: every log line. Thick: median of {window} log lines."
    outside = int((finite & ((loss < span[0]) | (loss > span[1]))).sum())
    if outside:
        text += f" {count(outside)} values lie outside the chart, the highest at "
        text += f"{decimal(float(loss[finite].max()))}."
    if not finite.all():
        first = float(data.steps.step[int(np.flatnonzero(~finite)[0])])
        text += (
            f" {count((~finite).sum())} of {count(len(loss))} log lines hold no finite loss, the "
            f"first at step {count(first)}; the line breaks there."
        )
    return text


def _lr_note(steps: StepSeries) -> str:
    lr = np.asarray(steps.lr, dtype=np.float64)
    highest = float(lr[np.isfinite(lr)].max()) if np.isfinite(lr).any() else math.nan
    return f"Highest {decimal(highest)}, last {decimal(float(lr[-1]))}."


def _evaluations(steps: StepSeries) -> Iterator[Chart]:
    names = dict.fromkeys(name for _, name, _ in steps.evaluations)
    for number, name in enumerate(names):
        points = sorted((seen, value) for seen, other, value in steps.evaluations if other == name)
        x, y = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
        finite = y[np.isfinite(y)]
        if not len(finite):
            continue
        is_share = finite.min() >= 0 and finite.max() <= 1 and "loss" not in name.lower()
        times = "once" if len(y) == 1 else f"{count(len(y))} times"
        last = percent(float(finite[-1])) if is_share else decimal(float(finite[-1]))
        low, high = shown_range(y)
        span = (0.0, 1.1 * high or 1.0) if is_share else (low, high)
        yield line_chart(
            f"score-{number}", name, f"Measured {times} during the run; the last is {last}.",
            [Line(x=x, y=y, dots=True)], y_range=span, unit="pairs seen", share=is_share,
        )  # fmt: skip


def _hidden_shares(data: ReportData) -> Chart | None:
    shares = hidden_shares(data)
    if not len(data.mask_ratios) or not len(shares):
        return None
    title = "Share of patches hidden, image by image"
    mean, low, high = (float(each) for each in (shares.mean(), shares.min(), shares.max()))
    if percent(low) == percent(high):
        note = f"The same in each of {count(len(shares))} images."
        return Chart(title=title, note=note, value=percent(mean))
    note = f"Mean {percent(mean)}, lowest {percent(low)}, highest {percent(high)}, over "
    note += f"{count(len(shares))} images. The horizontal axis is in percent."
    edges = np.linspace(math.floor(low * 50) * 2, math.ceil(high * 50 + 1e-9) * 2, 25)
    return histogram("hidden", title, note, edges, np.histogram(100 * shares, edges)[0])


def _step_time(steps: StepSeries) -> Chart | None:
    step_s = np.asarray(steps.step_s, dtype=np.float64)
    known = step_s[np.isfinite(step_s)]
    if not len(known):
        return None
    median, slow = (float(value) for value in np.quantile(known, [0.5, 0.95]))
    note = f"Median {duration(median)}, 95% of steps within {duration(slow)}."
    wait = data_wait(steps)
    if math.isfinite(wait):
        note += f" Dashed: the part spent waiting for data, {percent(wait)} of the whole."
    unit, factor = ("ms", 1000.0) if median < 1 else ("s", 1.0)
    drawn = [
        Line(x=x, y=y * factor, colour=colour, faint=faint, dashes=colour == "second", width=width)
        for colour, faint, width, (x, y) in (
            ("accent", True, 1, thin(steps.samples, step_s)),
            ("accent", False, 2, trend(steps.samples, step_s)),
            ("second", False, 1.5, trend(steps.samples, steps.data_wait_s)),
        )
    ]
    span = (0.0, shown_range(step_s)[1] * factor * 1.08)
    title = f"One step, in {unit}"
    return line_chart("step-time", title, note, drawn, y_range=span, unit="pairs seen")


def _tally(examples: Sequence[RetrievalExample]) -> str:
    ranks = [example.first_right for example in examples]
    first, missed = ranks.count(1), ranks.count(None)
    return (
        f"{len(ranks)} examples picked to show both sides, not a sample to count: the right "
        f"answer is first in {first}, further down the first {NUM_RESULTS} in "
        f"{len(ranks) - first - missed}, missing in {missed}. "
        "The number under an answer is its similarity to the query."
    )
