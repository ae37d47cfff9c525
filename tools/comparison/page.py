"""A comparison as one page: what differs, the tables, curves, costs, and how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tessera.evaluation.page.charts import (
    Frame,
    Line,
    axis,
    interval_bar,
    legend,
    line_chart,
    series_look,
)
from tessera.evaluation.page.document import Document, Headline, Section, table, write_document
from tessera.evaluation.page.markup import Markup, join, tag
from tessera.evaluation.page.numbers import count, duration, flop_count, flop_unit, percent
from tessera.evaluation.report.series import shown_range
from tessera.tools.comparison.markdown import cost_of_a_point, mean_and_deviation, relative
from tessera.tools.comparison.reading import TITLES, interval_words, signed_points
from tessera.tools.comparison.results import Cell, Row, Table
from tessera.tools.comparison.runs import LOSS, Curve

_ALONG: tuple[tuple[str, Callable[[Curve], NDArray[np.float64]]], ...] = (
    ("samples", lambda curve: curve.samples),
    ("operations", lambda curve: curve.flops),
    ("time in steps", lambda curve: curve.seconds),
)
_LEAST_REACH = 0.001
"""Of the bars, as a share: there may be no difference at all."""


def write_page(
    path: Path,
    title: str,
    tables: Sequence[Table],
    sentences: Sequence[str],
    commands: Sequence[str],
    failures: Sequence[tuple[str, str]],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: its heading.
        tables: those of all forms.
        sentences: from `reading`.
        commands: the one that made this, then those of the runs.
        failures: (run, reason) of those that failed.
    """
    sections = [
        Section(name="reading", title="What the numbers say", content=_reading(sentences)),
        *(_form_section(each) for each in tables),
        Section(name="curves", title="Curves", content=join(map(_curves, tables))),
        Section(name="runs", title="Every run", content=_runs(tables, failures)),
        Section(name="repeat", title="How to repeat it", content=_commands(commands)),
    ]
    write_document(
        Document(
            title=title,
            status=f"{len(failures)} runs missing" if failures else "complete",
            is_good=not failures,
            subject=f"{len(_finished(tables))} runs",
            summary=_summary(tables),
            headlines=_headlines(tables),
            sections=sections,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        path,
    )


def _finished(tables: Sequence[Table]) -> dict[Path, tuple[Row, int]]:
    """Every finished run once, with its row and its place there."""
    return {
        run.run.folder: (row, place)
        for each in tables
        for row in each.rows
        for place, run in enumerate(row.runs)
    }


def _summary(tables: Sequence[Table]) -> str:
    rows = [row for each in tables for row in each.rows]
    if not rows:
        return "No run finished."
    names = list(dict.fromkeys(row.variant for row in rows))
    seeds = sorted({run.run.seed for row in rows for run in row.runs})
    forms = " and ".join(TITLES[each.form] for each in tables)
    return (
        f"{', '.join(names)}: trained alike at {forms} with {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''} each, and measured on held-out data. Differences are "
        f"to {tables[0].baseline}, taken seed by seed."
    )


def _headlines(tables: Sequence[Table]) -> list[Headline]:
    """For each form and main score, the variant with the highest mean."""
    found = []
    for each in tables:
        for name in each.main_scores:
            best = max(each.rows, key=lambda row: row.cells[name].spread.mean)
            cell = best.cells[name]
            against = f"chance {percent(cell.chance)}"
            if not cell.is_above_chance:
                against = f"not above chance, {percent(cell.chance)}"
            elif cell.difference is not None and cell.difference.interval:
                sure = "beyond" if cell.difference.is_not_zero else "within"
                against = (
                    f"{signed_points(cell.difference.mean)} to {each.baseline}, {sure} the spread"
                )
            found.append(
                Headline(
                    label=f"highest {name} at {TITLES[each.form]}: {best.variant}",
                    value=percent(cell.spread.mean),
                    against=against,
                )
            )
    return found


def _reading(sentences: Sequence[str]) -> Markup:
    rule = (
        "Written by rule from the tables below. A variant differs where the 95% interval of its "
        "paired differences over seeds leaves out zero; what does not differ beyond the spread is "
        "not shown to be equal."
    )
    items = [tag("li", line) for line in sentences]
    return join([tag("ul", *items, class_="reading"), tag("p", rule, class_="note")])


def _form_section(each: Table) -> Section:
    if not each.rows:
        content = tag("p", "No run finished.", class_="none")
    else:
        parts = [_score_figure(each, name) for name in each.main_scores]
        content = join([*parts, _other_scores(each), _costs(each)])
    title = f"At {TITLES[each.form]}"
    return Section(name=f"equal-{each.form}", title=title, content=content)


def _score_figure(each: Table, name: str) -> Markup:
    """Scores with their differences as intervals around zero."""
    cells = [row.cells[name] for row in each.rows]
    reach = 1.1 * max(_LEAST_REACH, *(abs(edge) for cell in cells for edge in _edges(cell)))
    rows = [
        (
            row.variant,
            tag("strong", mean_and_deviation(cell)),
            _difference(cell),
            _interval(cell, reach),
        )
        for row, cell in zip(each.rows, cells, strict=True)
    ]
    heads = ("Variant", f"{name}, %", f"Difference to {each.baseline}, points", "")
    note = (
        "Mean \N{PLUS-MINUS SIGN} standard deviation over seeds. Bars: 95% intervals of the mean "
        f"difference, from \N{MINUS SIGN}{100 * reach:.1f} to +{100 * reach:.1f} points; coloured "
        f"where they leave out zero. Guessing gives {percent(cells[0].chance)}."
    )
    return join([tag("h3", name), table(heads, rows, "scores"), tag("p", note, class_="note")])


def _edges(cell: Cell) -> tuple[float, ...]:
    if cell.difference is None:
        return (0.0,)
    return (cell.difference.mean, *(cell.difference.interval or ()))


def _difference(cell: Cell) -> Markup:
    if cell.difference is None:
        return tag("small", "the baseline")
    words = interval_words(cell)
    mean = signed_points(cell.difference.mean)
    return join(
        [tag("span", mean, class_="whole"), tag("small", f" ({words})" if words else " (one seed)")]
    )


def _interval(cell: Cell, reach: float) -> Markup | str:
    if cell.difference is None or not cell.difference.interval:
        return ""
    low, high = cell.difference.interval
    return interval_bar(low, cell.difference.mean, high, reach, clear=cell.difference.is_not_zero)


def _other_scores(each: Table) -> Markup | None:
    names = [name for name in each.scores if name not in each.main_scores]
    if not names:
        return None
    rows = [(r.variant, *(mean_and_deviation(r.cells[name]) for name in names)) for r in each.rows]
    note = "In percent, mean \N{PLUS-MINUS SIGN} standard deviation over seeds; not tested."
    return join(
        [
            tag("h3", "Other scores"),
            table(("Variant", *names), rows, "scores"),
            tag("p", note, class_="note"),
        ]
    )


def _costs(each: Table) -> Markup:
    names = each.main_scores
    heads = (
        "Variant",
        "Pairs",
        "Operations",
        "Of the baseline's",
        "Time in steps",
        "Of the baseline's",
    )
    rows = [
        (
            row.variant,
            count(row.samples),
            flop_count(row.flops),
            relative(row.relative_flops, row, each),
            duration(row.seconds.mean),
            relative(row.relative_seconds, row, each),
            *(cost_of_a_point(row, name) for name in names),
        )
        for row in each.rows
    ]
    note = (
        "Of one run, means over seeds. Operations are counted from shapes, without the mask, the "
        "loss and the optimiser. Operations a point: for each percentage point above chance; a "
        "dash where a score is not above chance."
    )
    return join(
        [
            tag("h3", "Cost"),
            table((*heads, *(f"A point of {name}" for name in names)), rows, "scores"),
            tag("p", note, class_="note"),
        ]
    )


def _curves(each: Table) -> Markup:
    if not each.rows:
        return join([])
    runs = [run for row in each.rows for run in row.runs]
    names = [name for name in runs[0].curves if all(name in run.curves for run in runs)]
    figures = [_curve_figure(each, name, *along) for name in names for along in _ALONG]
    note = (
        f"At {TITLES[each.form]}, means over seeds; the loss is smoothed. A masked picture is "
        "harder to match, so the level of a loss does not rank variants; the scores do."
    )
    return join(
        [
            tag("h3", f"At {TITLES[each.form]}"),
            tag("p", note, class_="note"),
            legend([row.variant for row in each.rows]),
            tag("div", *figures, class_="pair"),
        ]
    )


def _curve_figure(
    each: Table, name: str, title: str, along: Callable[[Curve], NDArray[np.float64]]
) -> Markup:
    high = max(float(along(run.curves[name])[-1]) for row in each.rows for run in row.runs)
    size, unit = {"operations": flop_unit(high), "samples": (1.0, "pairs")}.get(title, (1.0, "s"))
    factor = 1.0 if name == LOSS else 100.0
    lines = []
    for number, row in enumerate(each.rows):
        curves = [run.curves[name] for run in row.runs]
        length = min(len(curve.values) for curve in curves)
        lines.append(
            Line(
                x=np.mean([along(curve)[:length] / size for curve in curves], axis=0),
                y=np.mean([curve.values[:length] * factor for curve in curves], axis=0),
                look=series_look(number),
                dots=name != LOSS,
            )
        )
    low, top = shown_range(np.concatenate([line.y for line in lines]))
    frame = Frame(
        summary=f"{name} against {title} for each variant",
        x=axis(0.0, high / size, most=4),
        y=axis(low, top, margin=0.05),
        unit=unit,
        height="middle",
    )
    shown = name if name == LOSS else f"{name}, %,"
    return tag("figure", tag("h3", f"{shown} against {title}"), line_chart(frame, lines))


def _runs(tables: Sequence[Table], failures: Sequence[tuple[str, str]]) -> Markup:
    parts: list[Markup] = []
    if failures:
        rows = [(name, reason) for name, reason in failures]
        parts += [tag("h3", "Missing"), table(("Run", "Reason"), rows, "scores")]
    found = _finished(tables)
    names = tables[0].main_scores or (tables[-1].main_scores if tables else [])
    rows = [
        (
            folder.name,
            duration(row.runs[place].seconds),
            *(f"{100 * row.cells[name].spread.values[place]:.1f}" for name in names),
        )
        for folder, (row, place) in sorted(found.items())
    ]
    heads = ("Variant, pairs, seed", "Time in steps", *(f"{name}, %" for name in names))
    listed = tag("details", tag("summary", f"{len(rows)} runs"), table(heads, rows, "scores"))
    return join([*parts, listed])


def _commands(commands: Sequence[str]) -> Markup:
    whole, single = commands[0], commands[1:]
    note = "Finished runs are taken as they are. The runs behind it, each by itself:"
    listed = tag(
        "details",
        tag("summary", f"{len(single)} commands"),
        tag("pre", tag("code", "\n".join(single))),
    )
    return join([tag("pre", tag("code", whole)), tag("p", note, class_="note"), listed])
