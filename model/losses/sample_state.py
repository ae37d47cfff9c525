"""A few float32 values for every sample of the data set, each kept by one rank.

Shapes: n samples, W ranks, m = ceil(n / W) of them on each, b samples of a batch on each rank,
B = W * b in all, K values a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tessera.model.losses.ranks import Ranks


class SampleState(nn.Module):
    """The table; sample i lies on rank i % W in row i // W.

    Every rank sees the rows of the whole global batch: 8 + 8 * (K + 1) bytes a sample are
    exchanged in a step, whatever the length of a feature.
    """

    def __init__(self, num_samples: int, initial: dict[str, float], ranks: Ranks) -> None:
        """Allocate.

        Args:
            num_samples: n.
            initial: name and first value of each of the K columns.
            ranks: who shares the table.
        """
        super().__init__()
        self.num_samples = num_samples
        self._names = tuple(initial)
        self._ranks = ranks
        self._spare = -(-num_samples // ranks.size)
        # The last row is spare: what another rank keeps is read from it and written to it, so
        # that shapes do not depend on the ids and nothing waits for the device.
        row = torch.tensor(list(initial.values()), dtype=torch.float32)
        self._values: Tensor
        self._seen: Tensor
        self.register_buffer("_values", row.repeat(self._spare + 1, 1), persistent=False)
        seen = torch.zeros(self._spare + 1, dtype=torch.bool)
        self.register_buffer("_seen", seen, persistent=False)

    def read(self, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Columns of some samples; a collective.

        Args:
            ids: [B] int64, the same on every rank.

        Returns:
            The columns by name, [B] float32 each, and [B] bool, which samples were written before.
        """
        rows = self._rows(ids)
        own = (rows != self._spare)[:, None]
        known = torch.cat((self._values[rows], self._seen[rows, None].float()), 1)
        known = self._ranks.sum(torch.where(own, known, 0))
        *columns, seen = known.unbind(1)
        return dict(zip(self._names, columns, strict=True)), seen > 0

    def write(self, ids: Tensor, columns: dict[str, Tensor]) -> None:
        """Store columns of some samples; of a sample that comes twice, the later values.

        Args:
            ids: [B] int64, the same on every rank.
            columns: by name, [B] float32 each, the same on every rank.
        """
        ordered, order = torch.sort(ids, stable=True)
        last = torch.ones_like(ids, dtype=torch.bool)
        last[order[:-1]] = ordered[1:] != ordered[:-1]
        rows = torch.where(last, self._rows(ids), self._spare)
        self._values[rows] = torch.stack([columns[name] for name in self._names], 1)
        self._seen[rows] = True

    def tensors(self) -> dict[str, Tensor]:
        """All columns and `seen`, [n] each on the CPU, by sample; a collective."""
        columns = dict(zip(self._names, self._values.unbind(1), strict=True))
        return {name: self._whole(each) for name, each in (columns | {"seen": self._seen}).items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take this rank's samples from what `tensors` gave.

        Raises:
            ValueError: a column is missing, unknown, or of another number of samples.
        """
        if set(tensors) != {*self._names, "seen"}:
            raise ValueError(
                f"the loss keeps {', '.join(sorted({*self._names, 'seen'}))}, the checkpoint has "
                f"{', '.join(sorted(tensors)) or 'nothing'}: resume with the loss that the run "
                "began with"
            )
        for name, tensor in tensors.items():
            if tensor.shape != (self.num_samples,):
                raise ValueError(
                    f"the loss's {name} is {list(tensor.shape)} in the checkpoint, the index has "
                    f"{self.num_samples} samples: resume on the index that the run began with"
                )
        own = slice(self._ranks.rank, None, self._ranks.size)
        values = torch.stack([tensors[name][own] for name in self._names], 1)
        self._values[: len(values)] = values.to(self._values)
        self._seen[: len(values)] = tensors["seen"][own].to(self._seen)

    def _rows(self, ids: Tensor) -> Tensor:
        """Where this rank keeps samples; the spare row for another rank's."""
        own = ids % self._ranks.size == self._ranks.rank
        return torch.where(own, ids // self._ranks.size, self._spare)

    def _whole(self, column: Tensor) -> Tensor:
        """[n] by sample, from this rank's column with its spare row."""
        by_rank = self._ranks.gather(column[:-1]).cpu().view(self._ranks.size, -1)
        return by_rank.T.flatten()[: self.num_samples].clone()
