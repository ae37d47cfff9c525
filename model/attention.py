"""The transformer block that both towers are made of, over packed tokens.

Shapes: B sequences, T tokens of all of them, W channels of the residual stream.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tessera.model.config import Activation, TextConfig, VisionConfig
from tessera.model.packing import PackedLayout, packed_attention


class Linear(nn.Linear):
    """A linear layer that computes in its input's type, whatever type its weights are kept in."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """[..., in] to [..., out], of the input's type."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """A layer norm that takes and gives its input's type, whatever type its weights are kept in."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """[..., W] to [..., W]. The kernels add up in float32 for every type."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


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
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        # torch.nn.MultiheadAttention's start, which open_clip's image tower keeps.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, layout: PackedLayout, *, pooled: bool = False) -> Tensor:
        """Attends.

        Args:
            x: [T, W] in the layout's type.
            layout: The batch's layout.
            pooled: Compute the pooled rows' output alone.

        Returns:
            [T, W], or [B, W] with `pooled`.
        """
        if pooled:
            query, key, value = self._pooled_query(x, layout)
        else:
            query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return self.out(packed_attention(query, key, value, layout, pooled=pooled).flatten(1))

    def _pooled_query(self, x: Tensor, layout: PackedLayout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, K] of the pooled rows, keys and values [T, H, K] of all."""
        width = x.shape[1]
        of_query, of_rest = self.qkv.weight.to(x.dtype).split((width, 2 * width))
        query_bias, rest_bias = self.qkv.bias.to(x.dtype).split((width, 2 * width))
        query = F.linear(x.index_select(0, layout.pooled_rows), of_query, query_bias)
        key, value = F.linear(x, of_rest, rest_bias).unflatten(-1, (2, self.heads, -1)).unbind(1)
        return query.unflatten(-1, (self.heads, -1)), key, value


class LayerScale(nn.Module):
    """A learned factor on each channel of an update (Touvron et al. 2021, section 2)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """[T, W] to [T, W]."""
        return x * self.gamma.to(x.dtype)


def _activation(name: Activation) -> nn.Module:
    if name == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, *, activation: Activation) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.activation = _activation(activation)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[T, W] to [T, W]."""
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to the stream."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        width, start = config.width, config.layer_scale
        self.ln_1 = LayerNorm(width, eps=config.ln_eps)
        self.attn = Attention(width, config.heads)
        self.ls_1 = nn.Identity() if start is None else LayerScale(width, start)
        self.ln_2 = LayerNorm(width, eps=config.ln_eps)
        self.mlp = Mlp(width, config.mlp_width, activation=config.activation)
        self.ls_2 = nn.Identity() if start is None else LayerScale(width, start)

    def forward(self, x: Tensor, layout: PackedLayout, *, pooled: bool = False) -> Tensor:
        """Runs the block.

        Args:
            x: [T, W], the residual stream; it keeps its type. Its updates are computed in the
                layout's type, from a copy of it that is rounded to that type.
            layout: The batch's layout.
            pooled: Return only the pooled rows. What the other rows would have become is never
                computed; the pooled rows come out the same.

        Returns:
            [T, W], or [B, W] with `pooled`.
        """
        update = self.ls_1(self.attn(self.ln_1(x.to(layout.dtype)), layout, pooled=pooled))
        x = (x.index_select(0, layout.pooled_rows) if pooled else x) + update
        return x + self.ls_2(self.mlp(self.ln_2(x.to(layout.dtype))))


class AttentionPool(nn.Module):
    """One learned query attends to all tokens of a sequence, and an MLP follows (SigLIP's)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.latent = nn.Parameter(torch.randn(width) * width**-0.5)
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)
        self.ln = LayerNorm(width, eps=config.ln_eps)
        self.mlp = Mlp(width, config.mlp_width, activation=config.activation)

    def forward(self, x: Tensor, layout: PackedLayout) -> Tensor:
        """[T, W] to [B, W], both in the layout's type."""
        query = self.query(self.latent.to(x.dtype)).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(1)
        every = query.expand(layout.batch_size, -1, -1)
        x = self.out(packed_attention(every, key, value, layout, pooled=True).flatten(1))
        return x + self.mlp(self.ln(x))


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    layout: PackedLayout,
    *,
    pooled: bool = True,
    recompute: bool = False,
) -> Tensor:
    """Runs a tower's blocks and keeps the pooled rows.

    Only the pooled rows of the last block reach the feature, so it computes no others: about
    5/6 of one block of the tower is saved, exactly.

    Args:
        blocks: The tower's `Block`s.
        x: [T, W].
        layout: The batch's layout.
        pooled: Whether one row of each sequence is all that the tower needs.
        recompute: Keep only each block's input, and run the block again in the backward pass
            (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    Returns:
        [B, W], or [T, W] without `pooled`.
    """
    last = len(blocks) - 1
    for i, block in enumerate(blocks):
        only_pooled = pooled and i == last
        if recompute and torch.is_grad_enabled():
            # Nothing in a block is random, so there is no generator's state to keep.
            x = checkpoint(
                block, x, layout, pooled=only_pooled, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x = block(x, layout, pooled=only_pooled)
    return x
