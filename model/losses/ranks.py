"""What a loss exchanges between the ranks of a process group.

Shapes: W ranks, b rows on each of them, B = W * b rows of all ranks, rank after rank.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """The ranks that share a global batch; one alone needs no process group."""

    group: dist.ProcessGroup | None = None
    """The group of the collectives; None for one rank alone."""
    size: int = 1
    """W, ranks in the group."""
    rank: int = 0
    """This one's place in the group, 0 .. W-1."""

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Ranks:
        """The ranks of a group; of the default group for None, where torch.distributed runs."""
        if group is None and not (dist.is_available() and dist.is_initialized()):
            return cls()
        group = group or dist.group.WORLD
        return cls(group=group, size=dist.get_world_size(group), rank=dist.get_rank(group))

    @property
    def alone(self) -> bool:
        """Whether there is nothing to exchange."""
        return self.size == 1

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks [B, ...] from those of each [b, ...]; carries no gradient."""
        rows = rows.detach()
        if self.alone:
            return rows
        gathered = rows.new_empty((self.size * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=self.group)
        return gathered

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """As `gather`; backward, each rank's rows get the sum of all ranks' gradients."""
        return rows if self.alone else _Gather.apply(rows, self)  # pyright: ignore[reportReturnType]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, element by element; carries no gradient."""
        total = values.detach().clone()
        if not self.alone:
            dist.all_reduce(total, group=self.group)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks  # pyright: ignore[reportAttributeAccessIssue]
        return ranks.gather(rows)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, None]:
        ranks: Ranks = ctx.ranks  # pyright: ignore[reportAttributeAccessIssue]
        own = gradient.new_empty((gradient.shape[0] // ranks.size, *gradient.shape[1:]))
        dist.reduce_scatter_tensor(own, gradient.contiguous(), group=ranks.group)
        return own, None
