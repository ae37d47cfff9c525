"""The captions of several indexes as one: the same sources, drawn with the same weights.

Legend: B samples of a batch, R texts served of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index import Index
from tessera.pipeline.index.caption_mix import CaptionMix, DrawnCaptions
from tessera.pipeline.index.chained_index import ChainedIndex, fingerprint_of
from tessera.pipeline.index.text_reduction import TextReductionKind


class ChainedCaptions(CaptionMix):
    """The mixes of all indexes; rows of each follow those of the one before it."""

    def __init__(
        self,
        index: ChainedIndex,
        weights: Sequence[tuple[str, float]],
        reduction: TextReductionKind = "truncate",
        *,
        every_text: bool = False,
    ) -> None:
        """Map the sources of every index; arguments and errors are those of `CaptionMix`."""
        mixes = [
            CaptionMix(each, weights, reduction, every_text=every_text) for each in index.indexes
        ]
        super().__init__(index.indexes[0], weights, reduction, every_text=every_text)
        self._mixes, self._indexes = mixes, index.indexes
        self._first_ids = index.first_ids
        self.names = [name for mix in mixes for name in mix.names]
        self.tables = [table for mix in mixes for table in mix.tables]
        self.word_classes = [classes for mix in mixes for classes in mix.word_classes]
        self._first_rows = np.cumsum([0, *(table.num_texts for table in self.tables)])
        own = [mix.fingerprint for mix in mixes]
        self.fingerprint = fingerprint_of(own) if any(own) else ""

    def describe(self) -> list[str]:
        """As of each index, whose folder comes first."""
        return [
            f"{index.directory}: {line}"
            for index, mix in zip(self._indexes, self._mixes, strict=True)
            for line in mix.describe()
        ]

    def owners(self) -> list[tuple[Index, str]]:
        """See `CaptionMix.owners`."""
        return [owner for mix in self._mixes for owner in mix.owners()]

    def draw(self, ids: NDArray[np.int64], uniforms: NDArray[np.float64]) -> DrawnCaptions:
        """Choose the texts of each sample among those of its own index; see `CaptionMix.draw`."""
        owners = np.searchsorted(self._first_ids, ids, side="right") - 1
        rows = np.empty((len(ids), self.texts_per_sample), dtype=np.int64)
        num_missing = num_short = first_table = 0
        for number, mix in enumerate(self._mixes):
            here = np.flatnonzero(owners == number)
            if len(here):
                drawn = mix.draw(ids[here] - self._first_ids[number], uniforms[here])
                rows[here] = drawn.rows.reshape(len(here), -1) + self._first_rows[first_table]
                num_missing += drawn.num_missing
                num_short += drawn.num_short
            first_table += len(mix.names)
        return DrawnCaptions(rows=rows.ravel(), num_missing=num_missing, num_short=num_short)


def open_captions(
    index: Index | ChainedIndex,
    weights: Sequence[tuple[str, float]],
    reduction: TextReductionKind = "truncate",
    *,
    every_text: bool = False,
) -> CaptionMix:
    """The mix of an index, or of several, each of which must have all sources.

    Raises:
        ValueError: see `CaptionMix`; the message names the index.
    """
    if isinstance(index, ChainedIndex):
        return ChainedCaptions(index, weights, reduction, every_text=every_text)
    return CaptionMix(index, weights, reduction, every_text=every_text)
