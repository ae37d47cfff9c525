"""Several indexes read as one: sample ids and shard numbers of each follow those before it.

Legend: M samples of all indexes, B of a batch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from tessera.pipeline.index import Index, ShardRecord


class ChainedColumn:
    """Columns end to end; only what is asked for is read."""

    def __init__(
        self,
        columns: Sequence[NDArray[Any]],
        first_ids: NDArray[np.int64],
        added: Sequence[int] | None = None,
    ) -> None:
        self._columns = columns
        self._first_ids = first_ids
        self._added = added or [0] * len(columns)

    def __getitem__(self, ids: npt.ArrayLike) -> NDArray[Any]:
        """The values of some samples, in the shape of `ids`."""
        ids = np.asarray(ids)
        owners = np.searchsorted(self._first_ids, ids, side="right") - 1
        values = np.empty(ids.shape, dtype=self._columns[0].dtype)
        for number in np.unique(owners).tolist():
            here = owners == number
            own = self._columns[number][ids[here] - self._first_ids[number]]
            values[here] = own + self._added[number] if self._added[number] else own
        return values


class ChainedIndex:
    """What a loader asks of an index, answered by several. Read-only, as `Index` is."""

    def __init__(self, indexes: Sequence[Index]) -> None:
        """Chain them.

        Raises:
            ValueError: they were made with different tokenizers.
        """
        self.indexes = tuple(indexes)
        tokenizers = {index.tokenizer for index in indexes}
        if len(tokenizers) > 1:
            raise ValueError(
                f"indexes that are trained on together need one tokenizer, got {tokenizers}: index "
                "their shards again with the same version"
            )
        self.tokenizer = tokenizers.pop()
        self.directory = " + ".join(str(index.directory) for index in indexes)
        """Folders of all of them, for messages."""
        starts = np.cumsum([0, *(index.num_samples for index in indexes)])
        self.first_ids: NDArray[np.int64] = starts[:-1]
        """Sample id of the first sample of each index."""
        self.num_samples = int(starts[-1])
        """M."""
        self.first_shards: list[int] = np.cumsum([0, *(len(i.shards) for i in indexes)])[
            :-1
        ].tolist()
        """Number of the first shard of each index."""
        self.shards: tuple[ShardRecord, ...] = tuple(s for i in indexes for s in i.shards)
        """Of all indexes."""
        self.shard = ChainedColumn([i.shard for i in indexes], starts[:-1], self.first_shards)
        self.offset, self.size, self.width, self.height, self.label, self.plain = (
            ChainedColumn([getattr(index, name) for index in indexes], starts[:-1])
            for name in ("offset", "size", "width", "height", "label", "plain")
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over those of the indexes, in their order."""
        return fingerprint_of([index.fingerprint for index in self.indexes])

    @property
    def rejections(self) -> dict[str, int]:
        """Samples of all indexes that cannot be used, counted by reason."""
        return dict(sum((Counter(index.rejections) for index in self.indexes), Counter()))

    def keys(self, ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Keys of the samples `ids`, each as its own index has it."""
        owners = np.searchsorted(self.first_ids, ids, side="right") - 1
        return [
            self.indexes[owner].keys([int(each) - int(self.first_ids[owner])])[0]
            for owner, each in zip(owners.tolist(), ids, strict=True)
        ]

    def check_files(self) -> None:
        """See `Index.check_files`."""
        for index in self.indexes:
            index.check_files()

    def check_shards(self) -> None:
        """See `Index.check_shards`."""
        for index in self.indexes:
            index.check_shards()


def fingerprint_of(parts: Sequence[str]) -> str:
    """SHA-256 (hex) of some fingerprints in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
