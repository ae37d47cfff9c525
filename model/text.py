"""Text tower: a causal transformer over the tokens of a batch of captions, packed.

Shapes: B captions, U tokens of all of them, C the context length, W channels of the residual
stream, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Block, run_blocks
from model.config import TextConfig
from model.packing import build_layout, compute_dtype, sequence_index


class TextTower(nn.Module):
    """CLIP's text transformer (Radford et al. 2021, section 2.4)."""

    def __init__(self, config: TextConfig, embed_dim: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, quick_gelu=quick_gelu)
            for _ in range(config.layers)
        )
        self.ln_final = nn.LayerNorm(config.width)
        self.proj = nn.Parameter(torch.empty(config.width, embed_dim))
        self._init_weights()

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Encodes captions; see `Clip.encode_text`.

        Args:
            tokens: [U] int32.
            offsets: [B+1] int32.

        Returns:
            [B, d].
        """
        num_tokens = tokens.shape[0]
        layout = build_layout(
            offsets,
            num_tokens,
            pooled_rows=offsets[1:].long() - 1,
            max_length=self.config.context_length,
            causal=True,
            dtype=compute_dtype(self.proj),
        )
        place = torch.arange(num_tokens, device=offsets.device)
        place = place - offsets[sequence_index(offsets, num_tokens)]
        x = self.token_embedding(tokens) + F.embedding(place, self.positional_embedding)
        x = run_blocks(self.blocks, x, layout)
        return self.ln_final(x).to(layout.dtype) @ self.proj.to(layout.dtype)

    def _init_weights(self) -> None:
        """CLIP's start, with residual products scaled down by the depth."""
        width, layers = self.config.width, self.config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.proj, std=width**-0.5)
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.out.weight, std=residual_std)
            nn.init.normal_(block.mlp.up.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.down.weight, std=residual_std)
