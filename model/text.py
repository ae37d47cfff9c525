"""Text tower: a transformer over the tokens of a batch of captions, packed.

Shapes: B captions, U tokens of all of them, C the context length, W channels of the residual
stream, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model.attention import Block, LayerNorm, run_blocks
from tessera.model.config import TextConfig
from tessera.model.execution import Execution
from tessera.model.packing import build_layout, pad_total, sequence_index


class TextTower(nn.Module):
    """CLIP's text transformer (Radford et al. 2021, section 2.4) and its bidirectional kin."""

    proj: nn.Parameter | None
    """[W, d], or None where the stream itself is the feature."""
    proj_bias: nn.Parameter | None
    """[d], or None."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.execution = Execution()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_final = LayerNorm(config.width, eps=config.ln_eps)
        has_proj, has_bias = config.projection, config.projection_bias
        self.proj = nn.Parameter(torch.empty(config.width, embed_dim)) if has_proj else None
        self.proj_bias = nn.Parameter(torch.zeros(embed_dim)) if has_bias else None
        self._init_weights()

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Encodes captions; see `Clip.encode_text`.

        Args:
            tokens: [U] int32.
            offsets: [B+1] int32.

        Returns:
            [B, d].
        """
        batch_size = offsets.shape[0] - 1
        if self.execution.static_shapes:
            tokens, offsets = pad_total(tokens, offsets, self.config.context_length)
        num_tokens = tokens.shape[0]
        caption = sequence_index(offsets, num_tokens)
        compute, residual = self.execution.types(self.token_embedding.weight)
        layout = build_layout(
            offsets,
            num_tokens,
            pooled_rows=self._pooled_rows(tokens, offsets, caption),
            max_length=self.config.context_length,
            causal=self.config.causal,
            dtype=compute,
            static=self.execution.static_shapes,
        )
        place = torch.arange(num_tokens, device=offsets.device) - offsets[caption]
        x = self.token_embedding(tokens) + F.embedding(place, self.positional_embedding)
        x = run_blocks(
            self.blocks, x.to(residual), layout, recompute=self.execution.checkpoint_blocks
        )
        x = self.ln_final(x[:batch_size]).to(layout.dtype)
        if self.proj is not None:
            x = x @ self.proj.to(layout.dtype)
        return x if self.proj_bias is None else x + self.proj_bias.to(layout.dtype)

    def projection(self) -> list[nn.Parameter]:
        """What brings the tower's feature into the joint space; empty without a projection."""
        return [part for part in (self.proj, self.proj_bias) if part is not None]

    def after_blocks(self) -> list[nn.Parameter]:
        """All that follows the blocks, `projection` included."""
        return [*self.ln_final.parameters(), *self.projection()]

    def _pooled_rows(self, tokens: Tensor, offsets: Tensor, caption: Tensor) -> Tensor:
        """[B] int64, the row that becomes each caption's feature.

        A causal tower's caption ends with the end token, and nothing behind the end token could
        reach it, so there it is the last row. Where padding is part of a bidirectional tower's
        caption, the end token stands before it.
        """
        pool, last = self.config.pool, offsets[1:].long() - 1
        if self.config.causal or pool == "last":
            return last
        first = offsets[:-1].long()
        if pool == "first":
            return first
        if pool == "eos":
            wanted = tokens == self.config.eos_id
        else:
            largest = tokens.new_zeros(first.shape).scatter_reduce(0, caption, tokens, "amax")
            wanted = tokens == largest[caption]
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        # As open_clip's argmax over no match, a caption without an end token is read at its first.
        rows = torch.where(wanted, rows, tokens.shape[0])
        found = torch.full_like(first, tokens.shape[0]).scatter_reduce(0, caption, rows, "amin")
        return torch.where(found < tokens.shape[0], found, first)

    def _init_weights(self) -> None:
        """CLIP's start, with residual products scaled down by the depth."""
        width, layers = self.config.width, self.config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if self.proj is not None:
            nn.init.normal_(self.proj, std=width**-0.5)
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.out.weight, std=residual_std)
            nn.init.normal_(block.mlp.up.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.down.weight, std=residual_std)
