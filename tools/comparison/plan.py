"""Which runs a comparison is made of.

Two forms. At equal samples all variants see as many pairs as the first one, the baseline, whatever
their recipes say; of several stages the first takes what the later ones leave. At equal
compute they see as many as cost the baseline's floating point operations (tools/benchmarks/
recipe_costs.py), in whole steps; the warm-up keeps its share of the run. A seed fixes weights,
order and draws, so runs of one seed differ in nothing but the variant and can be compared in pairs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from tessera.recipes import find_recipe
from tessera.tools.benchmarks.recipe_costs import stage_costs
from tessera.tools.benchmarks.train_lengths import captions_of
from tessera.tools.comparison.variants import Variant
from tessera.training.command_line import parse
from tessera.training.config import TrainConfig
from tessera.training.stages import stages_of

Form: TypeAlias = Literal["samples", "compute"]
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of `train.py`."""

    variant: str
    """Name of the variant."""
    seed: int
    """Of weights, order and draws."""
    words: tuple[str, ...]
    """What `train.py` is given."""
    config: TrainConfig
    """What follows from the words."""
    flops: float
    """Operations of the whole run, forward and backward, without loss and optimiser."""

    @property
    def folder(self) -> Path:
        """Where it is run; a name for it too, since no two runs share one."""
        return Path(self.config.run_dir)

    @property
    def samples(self) -> int:
        """Pairs of all stages, repeats counted."""
        return sum(
            stage.config.num_steps * stage.config.batch_size for stage in stages_of(self.config)
        )

    @property
    def command(self) -> str:
        """What makes this run again."""
        return shlex.join(["python", "train.py", *self.words])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All runs."""

    variants: Sequence[Variant]
    """The first is the baseline."""
    seeds: Sequence[int]
    """Of every variant."""
    forms: dict[Form, list[PlannedRun]]
    """The runs of each form, seed after seed; the forms share those that are the same."""

    @property
    def baseline(self) -> str:
        """Name of the variant that the others are compared with."""
        return self.variants[0].name

    @property
    def runs(self) -> list[PlannedRun]:
        """Every run once, in the order to make them."""
        unique = {run.folder: run for runs in self.forms.values() for run in runs}
        return list(unique.values())


def make_plan(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    forms: Sequence[Form],
    words: Sequence[str],
    out: Path,
) -> Plan:
    """Work out the runs; data that recipes draw themselves are drawn here.

    Args:
        variants: the first is the baseline.
        seeds: of every variant.
        forms: which forms.
        words: given to all runs, behind those of the variant.
        out: folder of the run folders.

    Raises:
        FileNotFoundError: training data are missing; names the command that makes them.
        ValueError: a name is taken twice or cannot be a folder's, nothing is left to compare, or a
            configuration is wrong.
        SystemExit: status 2 for a word that `train.py` does not know.
    """
    _check(variants, seeds)
    as_they_are = {
        variant.name: _run(variant, seeds[0], words, out, samples=None) for variant in variants
    }
    baseline = as_they_are[variants[0].name]
    planned: dict[Form, list[PlannedRun]] = {}
    for form in forms:
        samples = {
            name: _as_many(run, baseline) if form == "samples" else _affordable(run, baseline)
            for name, run in as_they_are.items()
        }
        planned[form] = [
            _run(variant, seed, words, out, samples=samples[variant.name])
            for seed in seeds
            for variant in variants
        ]
    return Plan(variants=variants, seeds=seeds, forms=planned)


def flops_of(config: TrainConfig) -> list[tuple[int, float]]:
    """(pairs, operations a pair) of every stage, with captions as long as the data's own."""
    return stage_costs(config, _own_lengths)


def _own_lengths(config: TrainConfig, context_length: int) -> tuple[int, ...]:
    return _captions(config.data.train_references, config.batch_size, context_length)


@cache
def _captions(references: tuple[str, ...], batch_size: int, context_length: int) -> tuple[int, ...]:
    """Lengths of a batch's captions; of several sets, as if each had the same share of it."""
    parts = [captions_of(each, batch_size, context_length) for each in references]
    return tuple(sorted(sum(parts, ()))[len(parts) // 2 :: len(parts)]) if parts[1:] else parts[0]


def _check(variants: Sequence[Variant], seeds: Sequence[int]) -> None:
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"variants and seeds must differ: {', '.join(names)}; {', '.join(map(str, seeds))}"
        )
    if len(names) < 2 or not seeds:
        raise ValueError("a comparison needs at least two variants and a seed")
    unfit = [name for name in names if not _NAME.fullmatch(name)]
    if unfit:
        raise ValueError(f"letters, digits, dots and hyphens make a variant's name, not {unfit[0]}")


def _as_many(run: PlannedRun, baseline: PlannedRun) -> int:
    """Pairs of the first stage of a run that sees as many pairs in all as the baseline."""
    later = sum(stage.total_samples for stage in run.config.stages)
    wanted = sum(stage.total_samples for stage in baseline.config.stages)
    wanted += baseline.config.total_samples
    if wanted - later < run.config.batch_size:
        raise ValueError(
            f"the later stages of {run.variant} take {later:,} pairs, and {baseline.variant} sees "
            f"{wanted:,} in all: nothing is left for its first stage"
        )
    return wanted - later


def _affordable(run: PlannedRun, baseline: PlannedRun) -> int:
    """Pairs of a run that does as many operations as the baseline, in whole steps."""
    config = run.config
    if config.stages:
        raise ValueError(
            f"{run.variant} has several stages, whose lengths belong together: leave out the form "
            "of equal compute"
        )
    pairs = config.total_samples * baseline.flops / run.flops
    return max(1, int(pairs + 1e-6) // config.batch_size) * config.batch_size


def _run(
    variant: Variant, seed: int, words: Sequence[str], out: Path, *, samples: int | None
) -> PlannedRun:
    """The run of a variant; `samples` None leaves its length as it is, for a look at its cost."""
    given = (*variant.words, *words, "--seed", str(seed))
    config = _parse(variant.recipe, given)
    length = config.total_samples if samples is None else samples
    warmup = config.optim.warmup_pairs(config.total_samples) * length // config.total_samples
    given = (
        *given,
        "--total-samples",
        str(length),
        "--optim.warmup-samples",
        str(warmup),
        "--run-dir",
        str(out / f"{variant.name}-{length}-seed{seed}"),
    )
    config = _parse(variant.recipe, given)
    find_recipe(config.recipe).prepare(config)
    flops = sum(pairs * each for pairs, each in flops_of(config))
    return PlannedRun(
        variant=variant.name, seed=seed, words=(variant.recipe, *given), config=config, flops=flops
    )


def _parse(recipe: str, words: Sequence[str]) -> TrainConfig:
    return parse([recipe, *words], lambda name: find_recipe(name).build(), "").config
