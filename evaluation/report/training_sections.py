"""The sections on the run itself: learning, time, data, configuration, how to repeat it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tessera.evaluation.page.charts import Axis, Frame, Line, axis, line_chart, share_bar
from tessera.evaluation.page.document import definitions
from tessera.evaluation.page.markup import Markup, join, tag
from tessera.evaluation.page.numbers import count, decimal, duration, percent, short_count
from tessera.evaluation.report.data import ReportData, StepSeries
from tessera.evaluation.report.series import data_wait, shown_range, thin, trend, window_for
from tessera.evaluation.report.summary import loss_ends

_NUM_STRIPS = 60


def learning(data: ReportData) -> Markup:
    """Return loss, learning rate, logit scale and the scores measured on the way."""
    steps = data.steps
    if not len(steps.step):
        return tag("p", "No training step was logged.", class_="none")
    along = _samples_axis(steps)
    return join(
        [
            _figure("Loss", _loss_chart(data, along), _loss_note(data)),
            _figure("Learning rate", _lr_chart(steps, along), _lr_note(steps)),
            tag(
                "div",
                _logit_scale(steps, along),
                *_evaluations(steps, along),
                class_="pair",
            ),
        ]
    )


def time(data: ReportData) -> Markup:
    """Return where the time went, over the run and step by step."""
    parts: list[Markup] = []
    seconds = [(label, value) for label, value in data.time_split if math.isfinite(value)]
    if seconds:
        parts.append(_time_table(seconds))
    else:
        parts.append(tag("p", "No timing was recorded.", class_="none"))
    if np.isfinite(np.asarray(data.steps.step_s, dtype=np.float64)).any():
        parts.append(_step_time(data.steps))
    return join(parts)


def data_section(data: ReportData) -> Markup:
    """Return what the data was, what of it was rejected and what had to be replaced."""
    if not data.data_facts:
        return tag("p", "Nothing was recorded about the data.", class_="none")
    return definitions(data.data_facts)


def configuration(data: ReportData) -> Markup:
    """Return every setting, folded away."""
    settings = list(_flatten(data.config))
    if not settings:
        return tag("p", "No configuration was recorded.", class_="none")
    rows = [tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in settings]
    return tag(
        "details",
        tag("summary", f"All {len(settings)} settings"),
        tag("table", tag("tbody", *rows), class_="settings"),
    )


def repeat(data: ReportData) -> Markup:
    """Return the command that repeats the run."""
    if not data.command:
        return tag("p", "The command was not recorded.", class_="none")
    return tag("pre", tag("code", data.command))


def _figure(title: str, chart: Markup, note: str) -> Markup:
    return tag("figure", tag("h3", title), chart, tag("figcaption", note))


def _samples_axis(steps: StepSeries) -> Axis:
    samples = np.asarray(steps.samples, dtype=np.float64)
    return axis(0.0, float(samples.max()) if np.isfinite(samples).all() else float(len(samples)))


def _loss_chart(data: ReportData, along: Axis) -> Markup:
    steps = data.steps
    ends = loss_ends(data)
    frame = Frame(
        summary=_loss_note(data),
        x=along,
        y=_loss_axis(data),
        last=(ends[1], decimal(ends[1])) if ends and np.isfinite(steps.loss[-1]) else None,
        reference=(data.loss_at_chance, "chance") if data.loss_at_chance is not None else None,
        unit="samples",
    )
    lines = [
        Line(x=x, y=y, look=look)
        for look, (x, y) in (
            ("raw", thin(steps.samples, steps.loss)),
            ("smooth", trend(steps.samples, steps.loss)),
        )
    ]
    return line_chart(frame, lines, _hover(steps, along))


def _loss_axis(data: ReportData) -> Axis:
    low, high = shown_range(data.steps.loss)
    if data.loss_at_chance is not None and data.loss_at_chance < high + (high - low) / 2:
        high = max(high, data.loss_at_chance)
    return axis(low, high, margin=0.06)


def _loss_note(data: ReportData) -> str:
    loss = np.asarray(data.steps.loss, dtype=np.float64)
    ends = loss_ends(data)
    bad = int((~np.isfinite(loss)).sum())
    if ends is None:
        return f"No log line of {count(len(loss))} holds a finite loss: training failed at once."
    window = window_for(len(loss))
    text = f"From {decimal(ends[0])} to {decimal(ends[1])}."
    if window > 1:
        text += f" Thin: every log line. Thick: median of {window} log lines."
    shown = _loss_axis(data)
    outside = int((np.isfinite(loss) & ((loss < shown.low) | (loss > shown.high))).sum())
    if outside:
        highest = decimal(float(loss[np.isfinite(loss)].max()))
        text += f" {count(outside)} values lie outside the chart, the highest at {highest}."
    if bad:
        first = float(data.steps.step[int(np.flatnonzero(~np.isfinite(loss))[0])])
        text += (
            f" {count(bad)} of {count(len(loss))} log lines hold no finite loss, the first at step "
            f"{count(first)}; the line breaks there."
        )
    return text


def _hover(steps: StepSeries, along: Axis) -> list[str]:
    samples = np.asarray(steps.samples, dtype=np.float64)
    line_x, line_y = trend(steps.samples, steps.loss)
    texts: list[str] = []
    for middle in (np.arange(_NUM_STRIPS) + 0.5) / _NUM_STRIPS * along.high:
        near = int(np.abs(samples - middle).argmin())
        texts.append(
            f"step {count(float(steps.step[near]))}, {short_count(samples[near])} samples: "
            f"loss {decimal(float(line_y[np.abs(line_x - middle).argmin()]))}, "
            f"learning rate {decimal(float(steps.lr[near]))}"
        )
    return texts


def _lr_chart(steps: StepSeries, along: Axis) -> Markup:
    high, last = shown_range(steps.lr)[1], float(steps.lr[-1])
    frame = Frame(
        summary=f"Learning rate. {_lr_note(steps)}",
        x=along,
        y=axis(0.0, high * 1.08, most=3),
        last=(last, decimal(last)),
        unit="samples",
        height="low",
    )
    x, y = thin(steps.samples, steps.lr)
    return line_chart(frame, [Line(x=x, y=y, look="smooth")])


def _lr_note(steps: StepSeries) -> str:
    lr = np.asarray(steps.lr, dtype=np.float64)
    if not np.isfinite(lr).any():
        return "No learning rate was logged."
    return f"Highest {decimal(float(np.nanmax(lr)))}, last {decimal(float(lr[-1]))}."


def _logit_scale(steps: StepSeries, along: Axis) -> Markup | None:
    values = np.asarray(steps.logit_scale, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = shown_range(values)
    last = float(finite[-1])
    frame = Frame(
        summary=f"Logit scale from {decimal(float(finite[0]))} to {decimal(last)}",
        x=along,
        y=axis(low, high, margin=0.1, most=4),
        last=(last, decimal(last)),
        unit="samples",
        height="middle",
    )
    x, y = thin(steps.samples, values)
    chart = line_chart(frame, [Line(x=x, y=y, look="smooth")])
    return _figure("Logit scale", chart, "Factor on the cosine similarities.")


def _evaluations(steps: StepSeries, along: Axis) -> Iterator[Markup]:
    names = dict.fromkeys(name for _, name, _ in steps.evaluations)
    for name in names:
        points = sorted((seen, value) for seen, other, value in steps.evaluations if other == name)
        x, y = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
        finite = y[np.isfinite(y)]
        if not len(finite):
            continue
        is_share = finite.min() >= 0 and finite.max() <= 1 and "loss" not in name.lower()
        last = percent(float(finite[-1])) if is_share else decimal(float(finite[-1]))
        vertical = axis(*shown_range(y), margin=0.1, most=4)
        if is_share:
            vertical = axis(0.0, float(finite.max()) * 1.1, most=4)
            labels = [f"{100 * value:.3g}%" for value in vertical.ticks]
            vertical = Axis(
                low=vertical.low, high=vertical.high, ticks=vertical.ticks, labels=labels
            )
        frame = Frame(
            summary=f"{name}, {len(y)} times; the last is {last}",
            x=along,
            y=vertical,
            last=(float(finite[-1]), last),
            unit="samples",
            height="middle",
        )
        chart = line_chart(frame, [Line(x=x, y=y, look="smooth", dots=True)])
        yield _figure(name, chart, f"Measured {count(len(y))} times during the run.")


def _time_table(seconds: Sequence[tuple[str, float]]) -> Markup:
    total_s = sum(value for _, value in seconds)
    longest_s = max(value for _, value in seconds)
    rows = [
        tag(
            "tr",
            tag("th", label, scope="row"),
            tag("td", share_bar(value / longest_s if longest_s > 0 else 0.0), class_="wide"),
            tag("td", duration(value), class_="number"),
            tag("td", percent(value / total_s) if total_s > 0 else "", class_="number quiet"),
        )
        for label, value in seconds
    ]
    note = tag("p", f"{duration(total_s)} in all.", class_="note")
    return join([tag("table", tag("tbody", *rows), class_="bars"), note])


def _step_time(steps: StepSeries) -> Markup:
    step_s = np.asarray(steps.step_s, dtype=np.float64)
    known = step_s[np.isfinite(step_s)]
    median, slow = (float(value) for value in np.quantile(known, [0.5, 0.95]))
    note = f"Median {duration(median)}, 95% of steps within {duration(slow)}."
    wait = data_wait(steps)
    if math.isfinite(wait):
        note += f" Dashed: the part spent waiting for data, {percent(wait)} of the whole."
    unit, factor = ("ms", 1000.0) if median < 1 else ("s", 1.0)
    frame = Frame(
        summary=f"Step time. {note}",
        x=_samples_axis(steps),
        y=axis(0.0, shown_range(step_s)[1] * factor * 1.08, most=4),
        last=(median * factor, duration(median)),
        unit="samples",
        height="middle",
    )
    drawn = (
        ("raw", thin(steps.samples, step_s)),
        ("smooth", trend(steps.samples, step_s)),
        ("second", trend(steps.samples, steps.data_wait_s)),
    )
    lines = [Line(x=x, y=y * factor, look=look) for look, (x, y) in drawn]
    return _figure(f"One step, in {unit}", line_chart(frame, lines), note)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
