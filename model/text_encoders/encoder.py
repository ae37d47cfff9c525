"""From texts to one vector each: tokens, a model of transformers, pooling.

Shapes: B texts, L tokens of the longest, E length of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Pooling = Literal["mean", "cls", "last"]
"""How the states of tokens become one vector: their mean, the first, or the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Texts as token ids, padded on the right."""

    ids: Tensor
    """[B, L] int64."""
    mask: Tensor
    """[B, L] bool, tokens; the rest is padding."""
    pooled: Tensor
    """[B, L] bool, tokens that a mean is taken over: at least one of each text."""

    def to(self, device: torch.device) -> TokenBatch:
        """The same on a device."""
        return TokenBatch(
            ids=self.ids.to(device), mask=self.mask.to(device), pooled=self.pooled.to(device)
        )


class Tokenise(Protocol):
    """Turns texts into tokens."""

    def __call__(self, texts: Sequence[str], instructions: Sequence[str]) -> TokenBatch:
        """Tokens of B texts, each with the instruction (perhaps empty) that stands before it."""
        ...


class TextEncoder(nn.Module):
    """A model whose token states are pooled into one vector of each text."""

    def __init__(
        self,
        backbone: nn.Module,
        tokenise: Tokenise,
        description: dict[str, Any],
        *,
        pooling: Pooling,
        unit_length: bool,
        bidirectional: bool,
    ) -> None:
        """Put an encoder together; `open_text_encoder` does it from a folder.

        Args:
            backbone: a model of transformers that gives `last_hidden_state`, perhaps with LoRA.
            tokenise: its tokens.
            description: see `description`.
            pooling: how states become a vector.
            unit_length: whether the vector is brought to unit length.
            bidirectional: whether a causal model's tokens see the later ones too.
        """
        super().__init__()
        self.backbone = backbone
        self.description = description
        """id, path, revision, pooling, dim, dtype and settings: what decides an embedding, in the
        fields of `pipeline.index.embeddings.EncoderRecord`."""
        self._tokenise = tokenise
        self._pooling: Pooling = pooling
        self._unit_length = unit_length
        # transformers builds the mask without the causal half if it is told so with the call.
        self._attention = {"is_causal": False} if bidirectional else {}

    @property
    def dim(self) -> int:
        """E."""
        return self.description["dim"]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.backbone.parameters()).device

    def tokenise(
        self, texts: Sequence[str], instructions: Sequence[str] | None = None
    ) -> TokenBatch:
        """Tokens on the encoder's device.

        Args:
            texts: B texts; what is too long loses its end.
            instructions: one before each text, which a language model reads and does not pool.
        """
        return self._tokenise(texts, instructions or [""] * len(texts)).to(self.device)

    def forward(self, ids: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        """Vectors of texts, with gradient.

        Args:
            ids: [B, L], see `TokenBatch`.
            mask: [B, L].
            pooled: [B, L].

        Returns:
            [B, E] float32.
        """
        vectors = pool(self.states(ids, mask), mask, pooled, self._pooling)
        return functional.normalize(vectors, dim=-1) if self._unit_length else vectors

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last states of all tokens: [B, L, E] in the model's precision."""
        output = self.backbone(input_ids=ids, attention_mask=mask.long(), **self._attention)
        return output.last_hidden_state

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, as one batch and without dropout: [B, E] float32 on its device."""
        was_training = self.training
        self.eval()
        batch = self.tokenise(texts)
        vectors = self(batch.ids, batch.mask, batch.pooled)
        self.train(was_training)
        return vectors


def pool(states: Tensor, mask: Tensor, pooled: Tensor, pooling: Pooling) -> Tensor:
    """One vector from the states of a text's tokens.

    Args:
        states: [B, L, E].
        mask: [B, L] bool, tokens; on the left.
        pooled: [B, L] bool, tokens of the mean.
        pooling: mean, cls or last.

    Returns:
        [B, E] float32; the mean is taken in float32 whatever the states are.
    """
    if pooling == "mean":
        weights = pooled.unsqueeze(-1).float()
        return (states.float() * weights).sum(dim=1) / weights.sum(dim=1)
    places = torch.zeros_like(mask[:, 0], dtype=torch.int64)
    if pooling == "last":
        places = mask.sum(dim=1) - 1
    return states[torch.arange(len(states), device=states.device), places].float()
