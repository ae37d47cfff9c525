"""What to keep of a data set: criteria, applied one after the other and counted.

In this order: a list of ids; the conditions of `where`; values that occur too often; repeated
values; the parts of a split; a limit. Each step sees only what those before it kept, except for
`drop_repeated`, which counts over the whole index, so that a value does not become rare by another
condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.pipeline.index.dataset import Dataset
from tessera.pipeline.index.listed import read_ids
from tessera.pipeline.index.look_alikes import MAX_DISTANCE, near_repeats
from tessera.pipeline.index.split import hash_values, parse_parts, part_numbers
from tessera.pipeline.index.tables import JoinCounts, SampleTable, open_samples

NUM_EXAMPLES = 3
_MAX_SHOWN = 60
_PICTURE_HASH = "dhash"
_OPEN = 2
"""What `SampleTable.truths` says where a missing value leaves a condition open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Criteria:
    """Which samples to keep; what is left at its default keeps all."""

    where: tuple[str, ...] = ()
    """Conditions in SQL that must all hold, each counted; see pipeline/index/tables.py."""
    caption_source: str = "caption"
    """Which texts `text`, `num_captions` and the lengths are of."""
    join: str = ""
    """Parquet, CSV or JSON file whose columns `where` may name."""
    listed: str = ""
    """File of ids to keep: text with one a line, DataComp's .npy, or a parquet column."""
    on: str = ""
    """Column by which the rows of `join` and the ids of `listed` are matched to samples: key, url,
    or another that both have."""
    drop_repeated: str = ""
    """Column: drop ALL samples whose value occurs more than `more_than` times in the index."""
    more_than: int = 1
    """See `drop_repeated`, at least 1."""
    unique: tuple[str, ...] = ()
    """Columns: of the samples with one value, keep the first in the order of the index."""
    max_distance: int = 0
    """With `unique` dhash: picture hashes this many bits apart count as one value, 0 .. 3."""
    split_into: tuple[str, ...] = ()
    """Parts by hash, as NAME=SHARE; shares add up to 1."""
    split_by: str = "key"
    """Column whose hash decides the part."""
    split_seed: int = 0
    """Of the hash: the same seed always makes the same parts."""
    limit: int = 0
    """Keep so many (of each part), drawn at random; 0 keeps all."""
    seed: int = 0
    """Of the draw for `limit`."""

    def __post_init__(self) -> None:
        if bool(self.join or self.listed) != bool(self.on):
            raise ValueError("a join needs both: --join TABLE (or --listed IDS) and --on COLUMN")
        if self.more_than < 1 or self.limit < 0:
            raise ValueError("--more-than must be at least 1, and --limit not negative")
        if not 0 <= self.max_distance <= MAX_DISTANCE:
            raise ValueError(
                f"--max-distance must lie between 0 and {MAX_DISTANCE}, got "
                f"{self.max_distance}: beyond that, pictures that differ would be dropped"
            )
        if self.max_distance and _PICTURE_HASH not in self.unique:
            raise ValueError(f"--max-distance is for --unique {_PICTURE_HASH}")
        if not 0 <= min(self.seed, self.split_seed) <= max(self.seed, self.split_seed) < 2**63:
            raise ValueError("seeds must lie between 0 and 2**63 - 1")
        if self.split_into:
            parse_parts(self.split_into)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one condition did."""

    condition: str
    """In words."""
    num_failing: int
    """Samples that it does not keep, whatever the others say; of those it looked at."""
    num_missing: int
    """Those among them for which it could not be decided, because a value is missing."""
    num_dropped: int
    """Samples that it dropped: those that all conditions before it had kept."""
    examples: tuple[str, ...]
    """A few of the dropped, with the values that decided."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chosen:
    """The result."""

    rows: dict[str, NDArray[np.int64]]
    """Rows of the index by part, ascending; the only part is '' without a split."""
    steps: list[Step]
    """What each condition did, in order."""
    joined: JoinCounts | None
    """How the table's rows found the samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Condition:
    """A condition that was checked."""

    text: str
    columns: list[str]


def column_kinds(dataset: Dataset, criteria: Criteria) -> dict[str, str]:
    """The columns that a selection's criteria may name, and what they hold.

    Raises:
        FileNotFoundError: there is no table to join.
        ValueError: there is no such caption source, or the table cannot be joined.
    """
    with open_samples(dataset.index, criteria.caption_source) as samples:
        if criteria.join:
            _check_column(samples, criteria.on, "--on")
            samples.join(Path(criteria.join), criteria.on)
        return samples.kinds


def choose(dataset: Dataset, criteria: Criteria) -> Chosen:
    """Apply criteria to a data set.

    Raises:
        FileNotFoundError: there is no table to join, or no list.
        ValueError: a criterion is wrong, or nothing is kept.
    """
    with open_samples(dataset.index, criteria.caption_source) as samples:
        joined = _join(samples, criteria)
        chooser = _Chooser(dataset, samples)
        listed = None
        if criteria.listed:
            _check_lookup(samples, criteria.on)
            listed = read_ids(Path(criteria.listed), criteria.on)
            samples.list_ids(listed.batches)
        samples.lock()
        conditions = [_Condition(text=text, columns=samples.check(text)) for text in criteria.where]
        for name in (*criteria.unique, criteria.drop_repeated, criteria.split_by):
            if name:
                _check_column(samples, name, "--unique, --drop-repeated and --split-by")
        if listed is not None:
            chooser.listed(Path(criteria.listed), criteria.on)
        if conditions:
            chooser.where(conditions)
        if criteria.drop_repeated:
            chooser.drop_repeated(criteria.drop_repeated, criteria.more_than)
        for name in criteria.unique:
            chooser.unique(name, criteria.max_distance if name == _PICTURE_HASH else 0)
        rows = chooser.split(criteria)
        if criteria.limit:
            rows = {name: chooser.draw(ids, criteria) for name, ids in rows.items()}
        empty = [name for name, ids in rows.items() if not len(ids)]
        if empty:
            raise ValueError(_nothing_left(empty[0], chooser.steps))
        return Chosen(rows=rows, steps=chooser.steps, joined=joined)


def _join(samples: SampleTable, criteria: Criteria) -> JoinCounts | None:
    if not criteria.join:
        return None
    _check_lookup(samples, criteria.on)
    samples.join(Path(criteria.join), criteria.on)
    named = (*criteria.where, *criteria.unique, criteria.drop_repeated, criteria.split_by)
    return samples.load_joined(named)


def _nothing_left(part: str, steps: list[Step]) -> str:
    dropped = "\n".join(f"  {step.num_dropped:,} by {step.condition}" for step in steps)
    of_part = f" in the part {part!r}" if part else ""
    return f"nothing is kept{of_part}; dropped were\n{dropped or '  none'}"


class _Chooser:
    """The rows that are still kept, and what happened to the others."""

    def __init__(self, dataset: Dataset, samples: SampleTable) -> None:
        self._samples = samples
        self._all = np.arange(dataset.index.num_samples)
        self._ids = dataset.sample_ids(0, dataset.num_samples)
        self.steps: list[Step] = []

    def listed(self, path: Path, name: str) -> None:
        """Keep the samples whose value of a column is in the list.

        Raises:
            ValueError: none is.
        """
        self._check_sameness(name)
        there = np.isin(self._ids, self._samples.listed(name, self._ids))
        num_ids, example = self._samples.list_facts()
        if not there.any():
            raise ValueError(
                f"no {name!r} of the samples is in {path}, whose first of {num_ids:,} is "
                f"{example!r}: is {name!r} the column that it lists?"
            )
        self._drop(~there, f"{name} in {path.name} ({num_ids:,} ids)", (name,))

    def where(self, conditions: list[_Condition]) -> None:
        """Keep where all hold; each is tried on all rows, so that its own count is known."""
        truths = self._samples.truths([each.text for each in conditions], self._ids)
        keep = np.ones(len(self._ids), dtype=bool)
        for condition, truth in zip(conditions, truths, strict=True):
            dropped = keep & (truth != 1)
            some = self._ids[np.flatnonzero(dropped)[:NUM_EXAMPLES]]
            step = Step(
                condition=condition.text,
                num_failing=int((truth != 1).sum()),
                num_missing=int((truth == _OPEN).sum()),
                num_dropped=int(dropped.sum()),
                examples=tuple(self._describe(some, condition.columns)),
            )
            self.steps.append(step)
            keep &= truth == 1
        self._ids = self._ids[keep]

    def drop_repeated(self, name: str, more_than: int) -> None:
        self._check_sameness(name)
        often = self._samples.occurring_more_than(name, more_than, self._all)
        self._drop(np.isin(self._ids, often), f"{name} occurs more than {more_than} times", (name,))

    def unique(self, name: str, max_distance: int) -> None:
        if max_distance:
            repeated = self._near_repeats(name, max_distance)
            what = f"a {name} within {max_distance} bits of an earlier one"
        else:
            self._check_sameness(name)
            repeated = np.isin(self._ids, self._samples.repeats(name, self._ids))
            what = f"the same {name} as an earlier one"
        self._drop(repeated, what, (name,))

    def split(self, criteria: Criteria) -> dict[str, NDArray[np.int64]]:
        if not criteria.split_into:
            return {"": self._ids}
        name = criteria.split_by
        values = self._samples.values(name, self._ids)
        if missing := values.null_count:
            raise ValueError(
                f"{missing:,} samples have no {name!r} to be split by: drop them with "
                f"--where '{name} IS NOT NULL', or split by key"
            )
        hashes = self._hashes(name, values, "tessera-split", criteria.split_seed)
        parts = parse_parts(criteria.split_into)
        number = part_numbers(hashes, parts)
        return {part.name: self._ids[number == n] for n, part in enumerate(parts)}

    def draw(self, ids: NDArray[np.int64], criteria: Criteria) -> NDArray[np.int64]:
        """`limit` of some rows: those with the smallest hashes, so that more contain fewer."""
        keys = self._samples.values("key", ids)
        hashes = self._hashes("key", keys, "tessera-limit", criteria.seed)
        return np.sort(ids[np.argsort(hashes, kind="stable")[: criteria.limit]])

    def _near_repeats(self, name: str, max_distance: int) -> NDArray[np.bool_]:
        values = self._samples.values(name, self._ids)
        if values.type != pa.uint64():
            raise ValueError(f"the column {name} holds no 64-bit picture hashes")
        known = values.is_valid().to_numpy(zero_copy_only=False)
        repeated = np.zeros(len(self._ids), dtype=bool)
        hashes = values.drop_null().to_numpy().astype(np.uint64)
        repeated[known] = near_repeats(hashes, max_distance)
        return repeated

    def _hashes(self, name: str, values: pa.Array, purpose: str, seed: int) -> NDArray[np.uint64]:
        self._check_sameness(name)
        return hash_values(values, purpose, seed)

    def _check_sameness(self, name: str) -> None:
        """See that equal values of a column mean the same.

        Raises:
            ValueError: the column holds fractions or conditions.
        """
        if not self._samples.holds_ids(name):
            raise ValueError(
                f"the column {name!r} cannot be used: only texts, hashes and whole numbers can be "
                "told apart"
            )

    def _drop(self, failing: NDArray[np.bool_], condition: str, shown: tuple[str, ...]) -> None:
        count = int(np.count_nonzero(failing))
        examples = self._describe(self._ids[np.flatnonzero(failing)[:NUM_EXAMPLES]], shown)
        step = Step(
            condition=condition,
            num_failing=count,
            num_missing=0,
            num_dropped=count,
            examples=tuple(examples),
        )
        self.steps.append(step)
        self._ids = self._ids[~failing]

    def _describe(self, ids: NDArray[np.int64], names: Sequence[str]) -> list[str]:
        """A line a sample: its key and the values of some columns."""
        if not len(ids):
            return []
        values = {name: self._samples.values(name, ids) for name in names if name != "key"}
        return [
            ", ".join([key, *(f"{name} {_shown(v[place])}" for name, v in values.items())])
            for place, key in enumerate(self._samples.index.keys(ids))
        ]


def _shown(cell: pa.Scalar) -> str:
    value = cell.as_py()
    if value is None:
        return "missing"
    if isinstance(value, float):
        return f"{value:g}"
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _check_column(samples: SampleTable, name: str, option: str) -> None:
    if samples.kinds.get(name) not in ("text", "hash", "number"):
        known = ", ".join(sorted(samples.kinds))
        raise ValueError(f"there is no column {name!r} for {option}; known: {known}")


def _check_lookup(samples: SampleTable, on: str) -> None:
    """See that samples can be looked up by a column.

    Raises:
        ValueError: there is no such column, or it is a key that two sources of the index have.
    """
    _check_column(samples, on, "--on")
    index = samples.index
    if on != "key" or len(index.source_names) < 2:
        return
    if len(samples.repeats("key", np.arange(index.num_samples))):
        raise ValueError(
            f"a key alone may be of several of the sources {', '.join(index.source_names)}: say "
            f"--on source_key, with values such as {index.keys([0])[0]!r}"
        )
