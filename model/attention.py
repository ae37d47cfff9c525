"""The transformer block that both towers are made of, over packed tokens.

Shapes: B sequences, T tokens of all of them, W channels of the residual stream.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.packing import PackedLayout, packed_attention


class QuickGELU(nn.Module):
    """x*sigmoid(1.702x), OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies it elementwise; same shape and type."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention inside each packed sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        # torch.nn.MultiheadAttention's start, which open_clip's image tower keeps.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, layout: PackedLayout, *, pooled: bool = False) -> Tensor:
        """Attends.

        Args:
            x: [T, W].
            layout: The batch's layout.
            pooled: Compute the pooled rows' output alone.

        Returns:
            [T, W], or [B, W] with `pooled`.
        """
        x = x.to(layout.dtype)
        asking = x.index_select(0, layout.pooled_rows) if pooled else x
        # Three products in place of one: each result is contiguous, as flash attention wants it.
        query, key, value = (
            F.linear(source, weight, bias).unflatten(-1, (self.heads, -1))
            for source, weight, bias in zip(
                (asking, x, x), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True
            )
        )
        return self.out(packed_attention(query, key, value, layout, pooled=pooled).flatten(1))


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = QuickGELU() if quick_gelu else nn.GELU()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[T, W] to [T, W]."""
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to the stream."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), quick_gelu=quick_gelu)

    def forward(self, x: Tensor, layout: PackedLayout, *, pooled: bool = False) -> Tensor:
        """Runs the block.

        Args:
            x: [T, W].
            layout: The batch's layout.
            pooled: Return only the pooled rows. What the other rows would have become is never
                computed; the pooled rows come out the same.

        Returns:
            [T, W], or [B, W] with `pooled`.
        """
        update = self.attn(self.ln_1(x), layout, pooled=pooled)
        x = (x.index_select(0, layout.pooled_rows) if pooled else x) + update
        return x + self.mlp(self.ln_2(x))


def run_blocks(blocks: nn.ModuleList, x: Tensor, layout: PackedLayout) -> Tensor:
    """Runs a tower's blocks and keeps the pooled rows.

    Only the pooled rows of the last block reach the feature, so it computes no others: about
    5/6 of one block of the tower is saved, exactly.

    Args:
        blocks: The tower's `Block`s.
        x: [T, W].
        layout: The batch's layout.

    Returns:
        [B, W].
    """
    last = len(blocks) - 1
    for i, block in enumerate(blocks):
        x = block(x, layout, pooled=i == last)
    return x
