"""Sentences that follow from a comparison's numbers by rule.

Where no variant is above chance, that is the first sentence: differences between guesses mean
nothing. A variant differs from the baseline where the 95% interval of the mean of its paired
differences (Student's t over seeds) leaves out zero. What does not is not called equal: the
interval says how large a difference would have gone unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.report.numbers import percent
from tessera.tools.comparison.results import Cell, Row, Table

TITLES = {"samples": "equal samples", "compute": "equal compute"}


def reading(tables: Sequence[Table]) -> list[str]:
    """What the tables show and what they do not.

    Args:
        tables: those of all forms.
    """
    sentences = [*_at_chance(tables), *(line for table in tables for line in _of_table(table))]
    compared = [
        cell
        for table in tables
        for row in table.rows
        for cell in row.cells.values()
        if cell.is_main and cell.difference is not None and cell.difference.interval
    ]
    if compared:
        sentences.append(_how_sure(compared))
    return sentences


def signed_points(share: float) -> str:
    """A difference of shares in percentage points with its sign."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def interval_words(cell: Cell) -> str:
    """The 95% interval of a difference in points; "" where there is none."""
    interval = cell.difference.interval if cell.difference else None
    return f"{signed_points(interval[0])} to {signed_points(interval[1])}" if interval else ""


def _at_chance(tables: Sequence[Table]) -> list[str]:
    """Scores in which no variant is above chance: one sentence if that is so in all of them."""
    scores = [(table, name) for table in tables for name in table.main_scores]
    guessed = [
        (table, name)
        for table, name in scores
        if not any(row.cells[name].is_above_chance for row in table.rows)
    ]
    if guessed and len(guessed) == len(scores):
        return [
            "No variant is above chance: these runs are too short, or the data too few, to tell "
            "variants apart."
        ]
    return [
        f"At {TITLES[table.form]}, {name}: no variant is above chance "
        f"({percent(table.rows[0].cells[name].chance)})."
        for table, name in guessed
    ]


def _of_table(table: Table) -> list[str]:
    others = [row for row in table.rows if row.variant != table.baseline]
    if len(others) == len(table.rows):
        return [f"At {TITLES[table.form]}: no run of {table.baseline}, the baseline, finished."]
    if not others:
        return [f"At {TITLES[table.form]}: no run besides those of {table.baseline} finished."]
    lines = [_about_score(table, others, name) for name in table.main_scores]
    return [*lines, *_about_cost(table, others)]


def _about_score(table: Table, others: Sequence[Row], name: str) -> str:
    start = f"At {TITLES[table.form]}, {name}: "
    differing, open_ones, unknown = [], [], []
    for row in others:
        cell = row.cells[name]
        difference = cell.difference
        if difference is None or difference.interval is None:
            unknown.append(row.variant)
        elif difference.is_not_zero:
            above = "above" if difference.mean > 0 else "below"
            differing.append(
                f"{row.variant} is {abs(100 * difference.mean):.1f} points {above} "
                f"{table.baseline} (95% interval {interval_words(cell)})"
            )
        else:
            open_ones.append(f"{row.variant} ({interval_words(cell)})")
    parts = list(differing)
    if open_ones:
        parts.append(
            f"no difference to {table.baseline} beyond the spread of the seeds for "
            + ", ".join(open_ones)
        )
    if unknown:
        parts.append(f"fewer than two seeds to compare for {', '.join(unknown)}")
    return start + "; ".join(parts) + "."


def _about_cost(table: Table, others: Sequence[Row]) -> list[str]:
    known = [row for row in others if row.relative_flops and row.relative_seconds]
    if not known:
        return []
    costs = ", ".join(
        f"{row.variant} {row.relative_flops:.2f} and {row.relative_seconds:.2f}" for row in known
    )
    return [
        f"At {TITLES[table.form]}, operations and time in steps, those of {table.baseline} "
        f"being 1: {costs}."
    ]


def _how_sure(compared: Sequence[Cell]) -> str:
    seeds = [len(cell.difference.values) for cell in compared if cell.difference]
    count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    found = sum(cell.difference is not None and cell.difference.is_not_zero for cell in compared)
    return (
        f"{found} of {len(compared)} comparisons lie beyond the spread of {count} seeds; with 95% "
        f"intervals, {0.05 * len(compared):.1f} of {len(compared)} would by chance alone if no "
        "variant differed. The seeds share the held-out data, so the intervals say nothing about "
        "other data."
    )
