"""Text side on sentence embeddings: an adapter in place of, or beside, a text transformer.

LLM2CLIP (Huang et al. 2024, arXiv 2411.04997, stage 2): a frozen language model has embedded every
caption once; trained is only what brings its embeddings into CLIP's space.

Shapes: B captions, E length of an embedding, d length of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model.attention import LayerNorm, Linear
from tessera.model.config import AdapterConfig
from tessera.model.execution import Execution


class AdapterBlock(nn.Module):
    """Residual inverted bottleneck: layer norm, a wider hidden layer with GELU, and back."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.ln = LayerNorm(width, eps=config.ln_eps)
        self.up = Linear(width, config.hidden_width)
        self.down = Linear(config.hidden_width, width)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, E] to [B, E] of the same type; the update is computed in `dtype`."""
        return x + self.down(F.gelu(self.up(self.ln(x.to(dtype)))))


class TextAdapter(nn.Module):
    """From embeddings to features: unit length, residual blocks, layer norm, projection."""

    def __init__(self, config: AdapterConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.execution = Execution()
        self.blocks = nn.ModuleList(AdapterBlock(config) for _ in range(config.layers))
        self.ln = LayerNorm(config.embedding_dim, eps=config.ln_eps)
        self.proj = Linear(config.embedding_dim, embed_dim)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Encodes captions; see `Clip.encode_embeddings`.

        Args:
            embeddings: [B, E] of any float type and length.

        Returns:
            [B, d].
        """
        # In float32: the squares of a float16 embedding of length 300 would overflow.
        x = F.normalize(embeddings.float(), dim=-1)
        compute, residual = self.execution.types(self.proj.weight)
        x = x.to(residual)
        for block in self.blocks:
            x = block(x, compute)
        return self.proj(self.ln(x.to(compute)))
