"""What a person names when naming data: `INDEX`, or `INDEX@SELECTION`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index import INDEX_FILE, Index, open_index
from tessera.pipeline.index.selections import SELECTIONS_DIR, Selection, open_selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A place of data, taken apart."""

    index_dir: Path
    """Folder of the index."""
    selection: str | None
    """Name of a selection of it; None for the whole index."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """An index, or those of its rows that a selection keeps."""

    index: Index
    """Where the samples are described; sample ids are its rows, selection or not."""
    selection: Selection | None
    """None for the whole index."""

    @property
    def rows(self) -> NDArray[np.uint32] | None:
        """[S] rows of the index that are used, ascending; None for all of them."""
        return None if self.selection is None else self.selection.rows

    @property
    def num_samples(self) -> int:
        """Samples that are used."""
        return self.index.num_samples if self.selection is None else self.selection.num_samples

    @property
    def selection_fingerprint(self) -> str | None:
        """With the index's fingerprint the identity of the data; None for the whole index."""
        return None if self.selection is None else self.selection.fingerprint

    def of_samples(self, column: NDArray[Any]) -> NDArray[Any]:
        """The part of a column of the index that is of the samples used."""
        return column if self.selection is None else column[self.selection.rows]

    def sample_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Rows of the samples `start` to `stop` in the order of the index; fewer at the end."""
        if self.selection is None:
            return np.arange(start, max(start, min(stop, self.num_samples)), dtype=np.int64)
        return self.selection.rows[start:stop].astype(np.int64)


def parse_reference(reference: Path | str) -> Reference:
    """Take `INDEX` or `INDEX@SELECTION` apart; looks for folders, opens nothing.

    A folder that exists is an index, whatever its name; otherwise what follows the last `@` of the
    last part of the path is a selection. A trailing `/` always names a folder.

    Raises:
        ValueError: nothing stands before or behind the `@`, or both readings exist.
    """
    text = os.fspath(reference)
    before, at, name = text.rpartition("@")
    if not at or "/" in name:
        return Reference(index_dir=Path(text), selection=None)
    whole, chosen = Path(text), Path(before) / SELECTIONS_DIR / f"{name}.arrow"
    if whole.is_dir():
        if (whole / INDEX_FILE).is_file() and chosen.is_file():
            raise ValueError(
                f"{text} is a folder with an index and also the selection {name!r} of {before}: "
                f"write {text}/ for the folder or {before}/@{name} for the selection"
            )
        return Reference(index_dir=whole, selection=None)
    if not before or not name:
        raise ValueError(f"{text!r} names no data: write INDEX, or INDEX@SELECTION")
    return Reference(index_dir=Path(before), selection=name)


def open_dataset(reference: Path | str) -> Dataset:
    """Open an index, or a selection of one; tables and rows are mapped, not read.

    Args:
        reference: `INDEX`, written by tools/index_shards.py, or `INDEX@SELECTION`, written by
            tools/select_samples.py.

    Raises:
        FileNotFoundError: the index or the selection is missing; the message names the command
            that makes it.
        ValueError: one of them is damaged, or the selection was made from another state of the
            index.
    """
    parsed = parse_reference(reference)
    index = open_index(parsed.index_dir)
    name = parsed.selection
    return Dataset(index=index, selection=None if name is None else open_selection(index, name))


def num_shared(one: Dataset, other: Dataset) -> int:
    """Samples that two sets have in common; 0 if they are of different indexes."""
    if one.index.fingerprint != other.index.fingerprint:
        return 0
    if one.rows is None or other.rows is None:
        return min(one.num_samples, other.num_samples)
    used = np.zeros(one.index.num_samples, dtype=bool)
    used[one.rows] = True
    return int(np.count_nonzero(used[other.rows]))
