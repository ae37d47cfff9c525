"""From finished runs to a table: what each variant scores and costs, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.tools.comparison.plan import Form, Plan
from tessera.tools.comparison.runs import FinishedRun
from tessera.tools.comparison.scores import Figure
from tessera.tools.comparison.statistics import Spread, paired

_ERRORS = 1.96
"""A score above chance exceeds it by so many standard errors of guessing, or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One score of one variant."""

    spread: Spread
    """Of the seeds, shares 0 to 1."""
    difference: Spread | None
    """To the baseline, over the seeds that both have; None for the baseline itself."""
    chance: float
    """What guessing gives."""
    n: int
    """Held-out questions that the shares are of; 0 where a record does not say."""
    is_main: bool
    """As `Figure.is_main`."""

    @property
    def is_above_chance(self) -> bool:
        """Whether the mean lies further above chance than guessing would with these questions.

        By 1.96 standard errors of guessing, where the number of questions is known, and, of several
        seeds, by their 95% interval.
        """
        error = math.sqrt(self.chance * (1 - self.chance) / (self.n or math.inf))
        interval = self.spread.interval
        by_seeds = interval is None or interval[0] > self.chance
        return by_seeds and self.spread.mean > self.chance + _ERRORS * error

    def flops_a_point(self, flops: float) -> float | None:
        """Operations of a run for each percentage point above chance; None at chance."""
        if not self.is_above_chance:
            return None
        return flops / (100 * (self.spread.mean - self.chance))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant in one form."""

    variant: str
    """Its name."""
    runs: tuple[FinishedRun, ...]
    """Those that finished, one for each seed."""
    cells: dict[str, Cell]
    """By name of the score."""
    samples: int
    """Pairs of a run."""
    flops: float
    """Operations of a run."""
    seconds: Spread
    """Time in steps, of the seeds."""
    relative_flops: float | None
    """Operations of a run, the baseline's being 1; None without a baseline."""
    relative_seconds: float | None
    """Time in steps, the baseline's being 1, mean of the seeds' ratios."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All variants in one form."""

    form: Form
    """At equal samples or at equal compute."""
    baseline: str
    """Name of the variant the others are compared with."""
    rows: tuple[Row, ...]
    """Variants with a finished run, the baseline first if it has one."""

    @property
    def scores(self) -> list[str]:
        """Names of the scores."""
        return list(self.rows[0].cells) if self.rows else []

    @property
    def main_scores(self) -> list[str]:
        """Names of those that the text speaks of."""
        return [name for name in self.scores if self.rows[0].cells[name].is_main]


def tables_of(plan: Plan, finished: Mapping[Path, FinishedRun]) -> list[Table]:
    """A table for each form.

    Args:
        plan: what was to be run.
        finished: what is there, by folder.
    """
    found = []
    for form, runs in plan.forms.items():
        there = [finished[run.folder] for run in runs if run.folder in finished]
        by_variant = {
            variant.name: {
                each.run.seed: each for each in there if each.run.variant == variant.name
            }
            for variant in plan.variants
        }
        baseline = by_variant[plan.baseline]
        rows = tuple(
            _row(name, seeds, {} if name == plan.baseline else baseline)
            for name, seeds in by_variant.items()
            if seeds
        )
        found.append(Table(form=form, baseline=plan.baseline, rows=rows))
    return found


def as_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The tables as plain values; shares are fractions of 1."""
    return [
        {
            "form": table.form,
            "baseline": table.baseline,
            "variants": {row.variant: _row_json(row) for row in table.rows},
        }
        for table in tables
    ]


def _row(variant: str, seeds: dict[int, FinishedRun], baseline: dict[int, FinishedRun]) -> Row:
    runs = tuple(seeds.values())
    shared = [seed for seed in seeds if seed in baseline]
    pairs = [(seeds[seed], baseline[seed]) for seed in shared]
    first = runs[0].run
    return Row(
        variant=variant,
        runs=runs,
        cells={name: _cell(name, score, runs, pairs) for name, score in runs[0].scores.items()},
        samples=first.samples,
        flops=first.flops,
        seconds=Spread(values=tuple(run.seconds for run in runs)),
        relative_flops=first.flops / pairs[0][1].run.flops if pairs else None,
        relative_seconds=(
            statistics.fmean(own.seconds / other.seconds for own, other in pairs) if pairs else None
        ),
    )


def _cell(
    name: str,
    score: Figure,
    runs: Sequence[FinishedRun],
    pairs: Sequence[tuple[FinishedRun, FinishedRun]],
) -> Cell:
    difference = paired(
        [own.scores[name].value for own, _ in pairs],
        [other.scores[name].value for _, other in pairs],
    )
    return Cell(
        spread=Spread(values=tuple(run.scores[name].value for run in runs)),
        difference=difference if pairs else None,
        chance=score.chance,
        n=score.n,
        is_main=score.is_main,
    )


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "samples": row.samples,
        "flops": row.flops,
        "relative_flops": row.relative_flops,
        "seconds": row.seconds.values,
        "relative_seconds": row.relative_seconds,
        "seeds": [run.run.seed for run in row.runs],
        "commands": [run.run.command for run in row.runs],
        "scores": {
            name: {
                "values": cell.spread.values,
                "mean": cell.spread.mean,
                "deviation": _or_none(cell.spread.deviation),
                "chance": cell.chance,
                "above_chance": cell.is_above_chance,
                "difference": cell.difference
                and {
                    "values": cell.difference.values,
                    "mean": cell.difference.mean,
                    "interval_95": cell.difference.interval,
                    "beyond_spread": cell.difference.is_not_zero,
                },
                "flops_a_point_above_chance": cell.flops_a_point(row.flops),
            }
            for name, cell in row.cells.items()
        },
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
