"""Several data sets that are trained on as one, each as often as its weight says."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import cast

from tessera.pipeline.counter_random import Purpose, keys
from tessera.pipeline.index.chained_index import ChainedIndex, fingerprint_of
from tessera.pipeline.index.dataset import Dataset, num_shared, open_dataset
from tessera.pipeline.mixed_order import Interleaving, MixedOrder
from tessera.pipeline.order import Order, SampleOrder
from tessera.pipeline.window_order import WindowOrder

TrainingSet = Path | str | tuple[Path | str, float]
"""`INDEX`, `INDEX@SELECTION`, one of them with `=WEIGHT` behind it, or such a pair."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixture:
    """Sets with weights. Sample ids are rows of their indexes, one index behind the other."""

    parts: tuple[Dataset, ...]
    """The sets, two or more."""
    weights: tuple[float, ...]
    """How often an epoch visits each sample of a set, on average."""
    index: ChainedIndex
    """Their indexes as one."""

    @property
    def quotas(self) -> tuple[int, ...]:
        """Visits of each set in an epoch: its weight times its samples, rounded, at least one."""
        return tuple(
            max(1, round(weight * part.num_samples))
            for part, weight in zip(self.parts, self.weights, strict=True)
        )

    @property
    def num_samples(self) -> int:
        """Visits of an epoch, of all sets."""
        return sum(self.quotas)

    @property
    def selection_fingerprint(self) -> str:
        """With the index's fingerprint the identity of the data: selections and weights."""
        parts = [part.selection_fingerprint or "all" for part in self.parts]
        return fingerprint_of([*parts, *(f"{weight:.17g}" for weight in self.weights)])


def parse_set(reference: TrainingSet) -> tuple[str, float]:
    """Take a reference and its weight apart; a weight is 1 where none is given.

    A folder that exists is an index, also with a `=` in its name.

    Raises:
        ValueError: the weight is not a finite number above 0.
    """
    if isinstance(reference, tuple):
        text, weight = os.fspath(reference[0]), float(reference[1])
    else:
        text = os.fspath(reference)
        name, equals, number = text.rpartition("=")
        if not equals or Path(text).is_dir():
            return text, 1.0
        try:
            text, weight = name, float(number)
        except ValueError:
            return text, 1.0
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"the weight of {text} must be a finite number above 0, got {weight:g}")
    return text, weight


def open_sets(references: TrainingSet | Sequence[TrainingSet]) -> Dataset | Mixture:
    """Open what is trained on: one set, or several as a mixture.

    Args:
        references: one set, or a list of them. A pair whose second part is a number is one set.

    Raises:
        FileNotFoundError: a set is missing.
        ValueError: none is named, one is damaged, two share samples, or a weight is wrong.
    """
    sets = [parse_set(reference) for reference in _listed(references)]
    if not sets:
        raise ValueError("name at least one index to train on")
    parts = tuple(open_dataset(reference) for reference, _ in sets)
    if len(parts) == 1:
        return parts[0]  # its weight is without effect: an epoch is one pass over it
    for (one, (name, _)), (other, (its_name, _)) in combinations(zip(parts, sets, strict=True), 2):
        shared = num_shared(one, other)
        if shared:
            raise ValueError(
                f"{name} and {its_name} share {shared:,} samples, which a batch could hold twice: "
                "name selections without common samples, or one set with a larger weight"
            )
    return Mixture(
        parts=parts,
        weights=tuple(weight for _, weight in sets),
        index=ChainedIndex([part.index for part in parts]),
    )


def check_batch(dataset: Dataset | Mixture, batch_size: int) -> None:
    """Make sure that no batch needs a sample twice.

    Raises:
        ValueError: a set is too small for its share of a batch.
    """
    if isinstance(dataset, Dataset):
        if batch_size > dataset.num_samples:
            raise ValueError(
                f"batch_size {batch_size} is more than the {dataset.num_samples} samples of "
                f"{_name(dataset)}: a batch would hold the same pair twice"
            )
        return
    interleaving = Interleaving(dataset.quotas)
    for number, part in enumerate(dataset.parts):
        most = interleaving.most_in_batch(number, batch_size)
        if most > part.num_samples:
            raise ValueError(
                f"a batch of {batch_size} takes up to {most} samples of {_name(part)}, which has "
                f"{part.num_samples}: lower the batch size or the weight of this set"
            )


def open_order(dataset: Dataset | Mixture, seed: int, *, window_shards: int | None = None) -> Order:
    """The order of a set or of a mixture.

    Args:
        dataset: from `open_sets`.
        seed: of the run.
        window_shards: shards that are mixed with each other, of each set; None for the whole set.
    """
    if isinstance(dataset, Dataset):
        return _order_of_one(dataset, seed, window_shards)
    # Sets of one size must not be permuted alike.
    seeds = [seed, *(int(keys(seed, 0, n, Purpose.SET)[0]) for n in range(1, len(dataset.parts)))]
    return MixedOrder(
        [
            _order_of_one(part, own_seed, window_shards)
            for part, own_seed in zip(dataset.parts, seeds, strict=True)
        ],
        Interleaving(dataset.quotas),
        dataset.index.first_ids.tolist(),
        dataset.index.first_shards,
        seed,
    )


def _order_of_one(
    dataset: Dataset, seed: int, window_shards: int | None
) -> SampleOrder | WindowOrder:
    index = dataset.index
    if window_shards is None:
        return SampleOrder(index.num_samples, seed, dataset.rows)
    return WindowOrder(index.shard_sizes, seed, window_shards, dataset.rows)


def _listed(references: TrainingSet | Sequence[TrainingSet]) -> Sequence[TrainingSet]:
    if isinstance(references, str | Path):
        return [references]
    if len(references) == 2 and isinstance(references[1], int | float):
        return [cast("tuple[Path | str, float]", references)]
    return cast("Sequence[TrainingSet]", references)


def _name(dataset: Dataset) -> str:
    selection = f"@{dataset.selection.name}" if dataset.selection else ""
    return f"{dataset.index.directory}{selection}"
