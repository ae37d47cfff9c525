"""What to keep of a data set: criteria, applied one after the other and counted.

In this order: a list of ids; the conditions of `where`; values that occur too often; repeated
values; the parts of a split; a limit. Each step sees only what those before it kept, except for
`drop_repeated`, which counts over the whole index, so that a value does not become rare by another
condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.selection import duplicates
from pipeline.selection.columns import Columns
from pipeline.selection.expression import Condition, compile_expression
from pipeline.selection.joined import JoinCounts, JoinedTable
from pipeline.selection.listed import PURPOSE, IdList, read_ids
from pipeline.selection.reference import Dataset
from pipeline.selection.split import parse_parts, part_numbers
from pipeline.selection.values import Numbers, Truth, Values

NUM_EXAMPLES = 3
_MAX_SHOWN = 60
_PICTURE_HASH = "dhash"


@dataclass(frozen=True, kw_only=True, slots=True)
class Criteria:
    """Which samples to keep; what is left at its default keeps all."""

    where: str = ""
    """Expression that must be true; see pipeline/selection/expression.py."""
    caption_source: str = "caption"
    """Which texts `text`, `num_captions` and the lengths are of."""
    join: str = ""
    """Parquet file whose columns `where` may name."""
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
            raise ValueError(
                "a join needs both: --join TABLE.parquet (or --listed IDS) and --on COLUMN"
            )
        if self.more_than < 1 or self.limit < 0:
            raise ValueError("--more-than must be at least 1, and --limit not negative")
        if not 0 <= self.max_distance <= duplicates.MAX_DISTANCE:
            raise ValueError(
                f"--max-distance must lie between 0 and {duplicates.MAX_DISTANCE}, got "
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


def open_columns(dataset: Dataset, criteria: Criteria) -> Columns:
    """The columns that a selection's criteria may name.

    Raises:
        FileNotFoundError: there is no table to join.
        ValueError: there is no such caption source, or the table cannot be joined.
    """
    plain = Columns(dataset.index, criteria.caption_source)
    if not criteria.join:
        return plain
    _check_column(plain, criteria.on, "--on")
    _check_unique_keys(plain, criteria.on)
    everything = np.arange(dataset.index.num_samples)
    table = JoinedTable(
        Path(criteria.join),
        criteria.on,
        lambda: duplicates.hash_column(plain, criteria.on, everything, "join")[0],
    )
    return Columns(dataset.index, criteria.caption_source, table)


def choose(dataset: Dataset, criteria: Criteria) -> Chosen:
    """Apply criteria to a data set.

    Raises:
        FileNotFoundError: there is no table to join, or no list.
        ValueError: a criterion is wrong, or nothing is kept.
    """
    columns = open_columns(dataset, criteria)
    kinds = columns.kinds
    conditions = compile_expression(criteria.where, kinds) if criteria.where else []
    for name in (*criteria.unique, criteria.drop_repeated, criteria.split_by):
        if name:
            _check_column(columns, name, "--unique, --drop-repeated and --split-by")
    chooser = _Chooser(dataset, columns)
    if criteria.listed:
        _check_column(columns, criteria.on, "--on")
        _check_unique_keys(columns, criteria.on)
        chooser.listed(read_ids(Path(criteria.listed), criteria.on), criteria.on)
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
        dropped = "\n".join(f"  {step.num_dropped:,} by {step.condition}" for step in chooser.steps)
        part = f" in the part {empty[0]!r}" if empty[0] else ""
        raise ValueError(f"nothing is kept{part}; dropped were\n{dropped or '  none'}")
    counts = columns.joined.counts if columns.joined else None
    return Chosen(rows=rows, steps=chooser.steps, joined=counts)


class _Chooser:
    """The rows that are still kept, and what happened to the others."""

    def __init__(self, dataset: Dataset, columns: Columns) -> None:
        self._columns = columns
        self._all = np.arange(dataset.index.num_samples)
        self._ids = dataset.sample_ids(0, dataset.num_samples)
        self.steps: list[Step] = []

    def listed(self, wanted: IdList, name: str) -> None:
        """Keep the samples whose value of a column is in a list.

        Raises:
            ValueError: none is.
        """
        hashes, gone = duplicates.hash_column(self._columns, name, self._ids, PURPOSE)
        there = np.isin(hashes, wanted.hashes) & ~gone
        if not there.any():
            raise ValueError(
                f"no {name!r} of the samples is in {wanted.path}, whose first of "
                f"{wanted.num_ids:,} is {wanted.example!r}: is {name!r} the column that it lists?"
            )
        condition = f"{name} in {wanted.path.name} ({wanted.num_ids:,} ids)"
        self._drop(~there, condition, (name,))

    def where(self, conditions: list[Condition]) -> None:
        """Keep where all hold; each is tried on all rows, so that its own count is known."""
        counts = np.zeros((len(conditions), 3), dtype=np.int64)
        examples: list[list[str]] = [[] for _ in conditions]
        kept = []
        for chunk in self._columns.chunks(self._ids):
            keep = np.ones(len(chunk.ids), dtype=bool)
            for number, condition in enumerate(conditions):
                truth = condition.test(chunk)
                true = np.broadcast_to(truth.true, keep.shape)
                undecided = ~true & ~np.broadcast_to(truth.false, keep.shape)
                dropped = keep & ~true
                counts[number] += [(~true).sum(), undecided.sum(), dropped.sum()]
                wanted = NUM_EXAMPLES - len(examples[number])
                some = chunk.ids[np.flatnonzero(dropped)[:wanted]]
                examples[number] += self._describe(some, condition.columns)
                keep &= true
            kept.append(chunk.ids[keep])
        for condition, (failing, undecided, dropped), shown in zip(
            conditions, counts.tolist(), examples, strict=True
        ):
            step = Step(
                condition=condition.text,
                num_failing=failing,
                num_missing=undecided,
                num_dropped=dropped,
                examples=tuple(shown),
            )
            self.steps.append(step)
        self._ids = np.concatenate([np.empty(0, np.int64), *kept])

    def drop_repeated(self, name: str, more_than: int) -> None:
        often = duplicates.occurring_more_than(self._columns, name, self._all, more_than)
        self._drop(often[self._ids], f"{name} occurs more than {more_than} times", (name,))

    def unique(self, name: str, max_distance: int) -> None:
        if max_distance:
            hashes, known = self._picture_hashes(name)
            repeated = np.zeros(len(self._ids), dtype=bool)
            repeated[known] = duplicates.near_repeats(hashes[known], max_distance)
            what = f"a {name} within {max_distance} bits of an earlier one"
        else:
            repeated = duplicates.repeats(self._columns, name, self._ids)
            what = f"the same {name} as an earlier one"
        self._drop(repeated, what, (name,))

    def split(self, criteria: Criteria) -> dict[str, NDArray[np.int64]]:
        if not criteria.split_into:
            return {"": self._ids}
        name = criteria.split_by
        hashes, gone = duplicates.hash_column(
            self._columns, name, self._ids, "tessera-split", criteria.split_seed
        )
        if gone.any():
            raise ValueError(
                f"{int(gone.sum()):,} samples have no {name!r} to be split by: drop them with "
                f"--where 'not missing({name})', or split by key"
            )
        parts = parse_parts(criteria.split_into)
        number = part_numbers(hashes, parts)
        return {part.name: self._ids[number == n] for n, part in enumerate(parts)}

    def draw(self, ids: NDArray[np.int64], criteria: Criteria) -> NDArray[np.int64]:
        """`limit` of some rows: those with the smallest hashes, so that more contain fewer."""
        hashes, _ = duplicates.hash_column(
            self._columns, "key", ids, "tessera-limit", criteria.seed
        )
        return np.sort(ids[np.argsort(hashes, kind="stable")[: criteria.limit]])

    def _picture_hashes(self, name: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        values = self._columns.read(name, self._ids)
        if not isinstance(values, Numbers) or values.data.dtype != np.uint64:
            raise ValueError(f"the column {name} holds no 64-bit picture hashes")
        return values.data, values.known

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

    def _describe(self, ids: NDArray[np.int64], names: tuple[str, ...]) -> list[str]:
        """A line a sample: its key and the values of some columns."""
        if not len(ids):
            return []
        values = {name: self._columns.read(name, ids) for name in names if name != "key"}
        return [
            ", ".join([key, *(f"{name} {_shown(v, place)}" for name, v in values.items())])
            for place, key in enumerate(self._columns.index.keys(ids))
        ]


def _shown(values: Values, place: int) -> str:
    if isinstance(values, Truth):
        value = True if values.true[place] else False if values.false[place] else None
    elif isinstance(values, Numbers):
        value = values.data[place].item() if values.known[place] else None
    else:
        value = values[place].as_py()
    if value is None:
        return "missing"
    if isinstance(value, float):
        return f"{value:g}"
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _check_unique_keys(columns: Columns, on: str) -> None:
    """Refuse to look up by keys that two sources of the index have."""
    index = columns.index
    if on != "key" or len(index.source_names) < 2:
        return
    everything = np.arange(index.num_samples)
    hashes = np.sort(duplicates.hash_column(columns, "key", everything, "join")[0])
    if (hashes[1:] == hashes[:-1]).any():
        sources = ", ".join(index.source_names)
        example = index.keys([0])[0]
        raise ValueError(
            f"a key alone may be of several of the sources {sources}: say --on source_key, with "
            f"values such as {example!r}"
        )


def _check_column(columns: Columns, name: str, option: str) -> None:
    if columns.kinds.get(name) not in ("text", "bytes", "number"):
        known = ", ".join(sorted(columns.kinds))
        raise ValueError(f"there is no column {name!r} for {option}; known: {known}")
