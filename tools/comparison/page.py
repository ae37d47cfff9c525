"""A comparison as one page: what differs, the tables, curves, costs, and how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.report.charts import Chart, line_chart, series_line
from tessera.report.numbers import count, duration, flop_count, flop_unit, percent
from tessera.report.page import Headline, now, write
from tessera.report.series import shown_range
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
    runs = _runs(tables)
    write(
        path,
        "comparison",
        title=title,
        created=now(),
        summary=_summary(tables),
        headlines=_headlines(tables),
        sentences=sentences,
        forms=[_form(each) for each in tables],
        runs=runs,
        run_scores=next((each.main_scores for each in tables if each.rows), []),
        commands=commands,
        failures=failures,
    )


def _summary(tables: Sequence[Table]) -> str:
    rows = [row for each in tables for row in each.rows]
    if not rows:
        return "No run finished."
    names = list(dict.fromkeys(row.variant for row in rows))
    seeds = {run.run.seed for row in rows for run in row.runs}
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
                mean = signed_points(cell.difference.mean)
                against = f"{mean} to {each.baseline}, {sure} the spread"
            label = f"highest {name} at {TITLES[each.form]}: {best.variant}"
            found.append(Headline(percent(cell.spread.mean), label, against))
    return found


def _form(each: Table) -> dict[str, Any]:
    rest = [name for name in each.scores if name not in each.main_scores]
    return {
        "name": f"equal-{each.form}",
        "title": f"At {TITLES[each.form]}",
        "baseline": each.baseline,
        "variants": [row.variant for row in each.rows],
        "scores": [_score(each, name) for name in each.main_scores],
        "rest": rest,
        "rest_rows": [
            (row.variant, *(mean_and_deviation(row.cells[name]) for name in rest))
            for row in each.rows
        ],
        "cost_heads": [f"A point of {name}" for name in each.main_scores],
        "costs": [_costs(row, each) for row in each.rows],
        "curves": list(_curves(each)),
    }


def _score(each: Table, name: str) -> dict[str, Any]:
    """Scores with their differences as intervals around zero, on one scale."""
    cells = [row.cells[name] for row in each.rows]
    reach = 1.1 * max(_LEAST_REACH, *(abs(edge) for cell in cells for edge in _edges(cell)))
    return {
        "name": name,
        "chance": cells[0].chance,
        "ends": (signed_points(-reach), signed_points(reach)),
        "rows": [
            {
                "variant": row.variant,
                "score": mean_and_deviation(cell),
                "difference": cell.difference and signed_points(cell.difference.mean),
                "interval": interval_words(cell),
                "places": _places(cell, reach),
                "is_clear": cell.difference is not None and cell.difference.is_not_zero,
            }
            for row, cell in zip(each.rows, cells, strict=True)
        ],
    }


def _edges(cell: Cell) -> tuple[float, ...]:
    if cell.difference is None:
        return (0.0,)
    return (cell.difference.mean, *(cell.difference.interval or ()))


def _places(cell: Cell, reach: float) -> tuple[float, float, float] | None:
    """(left end, width, mean) of the interval in percent of a bar from -reach to reach."""
    if cell.difference is None or not cell.difference.interval:
        return None
    low, high = cell.difference.interval
    left, mean, right = (50 * (value / reach + 1) for value in (low, cell.difference.mean, high))
    return left, right - left, mean


def _costs(row: Row, each: Table) -> list[str]:
    return [
        row.variant,
        count(row.samples),
        flop_count(row.flops),
        relative(row.relative_flops, row, each),
        duration(row.seconds.mean),
        relative(row.relative_seconds, row, each),
        *(cost_of_a_point(row, name) for name in each.main_scores),
    ]


def _curves(each: Table) -> Iterator[Chart]:
    runs = [run for row in each.rows for run in row.runs]
    names = [name for name in runs[0].curves if all(name in r.curves for r in runs)] if runs else []
    for name in names:
        for number, (along, column) in enumerate(_ALONG):
            yield _curve(each, f"{each.form}-{names.index(name)}-{number}", name, along, column)


def _curve(
    each: Table, key: str, name: str, along: str, column: Callable[[Curve], NDArray[np.float64]]
) -> Chart:
    high = max(float(column(run.curves[name])[-1]) for row in each.rows for run in row.runs)
    size, unit = {"operations": flop_unit(high), "samples": (1.0, "pairs seen")}.get(
        along, (1.0, "seconds")
    )
    lines = []
    for number, row in enumerate(each.rows):
        curves = [run.curves[name] for run in row.runs]
        length = min(len(curve.values) for curve in curves)
        x = np.mean([column(curve)[:length] / size for curve in curves], axis=0)
        y = np.mean([curve.values[:length] for curve in curves], axis=0)
        lines.append(series_line(number, x, y, dots=name != LOSS))
    low, top = shown_range(np.concatenate([line.y for line in lines]))
    margin = 0.05 * (top - low)
    return line_chart(
        f"curve-{key}", f"{name} against {along}", f"At {TITLES[each.form]}.", lines,
        y_range=(low - margin, top + margin), unit=unit, share=name != LOSS,
    )  # fmt: skip


def _runs(tables: Sequence[Table]) -> list[list[str]]:
    """Name, time and main scores of every finished run, once."""
    found: dict[str, list[str]] = {}
    for each in tables:
        for row in each.rows:
            for place, run in enumerate(row.runs):
                cells = (row.cells[name].spread.values[place] for name in each.main_scores)
                found[run.run.folder.name] = [
                    run.run.folder.name,
                    duration(run.seconds),
                    *(f"{100 * value:.1f}" for value in cells),
                ]
    return [found[name] for name in sorted(found)]
