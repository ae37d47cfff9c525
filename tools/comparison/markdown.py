"""A comparison as Markdown, for a record or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.report.numbers import flop_count
from tessera.tools.comparison.reading import TITLES, interval_words, signed_points
from tessera.tools.comparison.results import Cell, Row, Table


def markdown(tables: Sequence[Table], sentences: Sequence[str], commands: Sequence[str]) -> str:
    """The tables, what follows from them, and the commands that repeat them.

    Args:
        tables: those of all forms.
        sentences: from `reading`.
        commands: to be shown as code.
    """
    parts = ["## What the numbers say", "\n".join(f"- {line}" for line in sentences)]
    for table in tables:
        parts += [f"## At {TITLES[table.form]}", *_tables(table)]
    parts += ["## Commands", "```\n" + "\n".join(commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


def mean_and_deviation(cell: Cell) -> str:
    """Mean and standard deviation over seeds, in percent."""
    spread = cell.spread
    if len(spread.values) < 2:
        return f"{100 * spread.mean:.1f}"
    return f"{100 * spread.mean:.1f} \N{PLUS-MINUS SIGN} {100 * spread.deviation:.1f}"


def difference_words(cell: Cell) -> str:
    """The difference to the baseline with its interval, bold where that leaves out zero."""
    if cell.difference is None:
        return ""
    text = signed_points(cell.difference.mean)
    if not cell.difference.interval:
        return text
    text = f"{text} ({interval_words(cell)})"
    return f"**{text}**" if cell.difference.is_not_zero else text


def relative(value: float | None, row: Row, table: Table) -> str:
    """A cost with the baseline's as 1; empty where there is no baseline to compare with."""
    if row.variant == table.baseline:
        return "1.00"
    return "" if value is None else f"{value:.2f}"


def cost_of_a_point(row: Row, name: str) -> str:
    """Operations for each point above chance, or a dash where the score is not above it."""
    flops = row.cells[name].flops_a_point(row.flops)
    return "\N{EN DASH}" if flops is None else flop_count(flops)


def _tables(table: Table) -> list[str]:
    main = table.main_scores
    heads = ["variant", "seeds", "pairs", "operations", "time"]
    for name in main:
        heads += [name, f"difference to {table.baseline}", "operations a point"]
    rows = []
    for row in table.rows:
        cells = [row.variant, str(len(row.runs)), f"{row.samples:,}"]
        cells += [
            relative(row.relative_flops, row, table),
            relative(row.relative_seconds, row, table),
        ]
        for name in main:
            cell = row.cells[name]
            cells += [mean_and_deviation(cell), difference_words(cell), cost_of_a_point(row, name)]
        rows.append(cells)
    found = [_pipes(heads, rows)]
    rest = [name for name in table.scores if name not in main]
    if rest:
        others = [[r.variant, *(mean_and_deviation(r.cells[n]) for n in rest)] for r in table.rows]
        found.append(_pipes(["variant", *rest], others))
    return found


def _pipes(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
