"""Floating point operations of the towers, counted from their shapes.

A product of [m, k] and [k, n] is 2*m*k*n. Only products are counted, of the linear layers and of
attention (whole, also where it is causal), as torch.utils.flop_counter counts them. The backward
pass is two products for each of the forward pass, and one for the patch projection, whose input
needs no gradient.

Shapes: B sequences, T tokens of all of them, n tokens of one, W channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.model.config import ClipConfig, TextConfig, VisionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a tower computes on."""

    image_tokens: Sequence[int]
    """Tokens of each image, the class token included."""
    embedded_patches: int
    """Patches of all images that go through the patch projection."""
    text_tokens: Sequence[int]
    """Tokens of each caption, padding included where it is computed."""
    pooled_only: bool
    """Whether the last block computes only the rows that become features, as ours does; a tower
    that takes the mean of its patches computes all."""


def step_flops(config: ClipConfig, work: Work) -> int:
    """Operations of one step, forward and backward, without loss and optimiser."""
    texts = adapter_forward(config, work)
    if config.adapter is None or not config.adapter.replaces_text:
        texts += text_forward(config, work)
    return 3 * (image_forward(config, work) + texts) - _projection(config, work)


def image_forward(config: ClipConfig, work: Work) -> int:
    """Operations of the image tower's forward pass."""
    one_row = work.pooled_only and config.vision.pool == "tok"
    blocks = _tower(config.vision, work.image_tokens, config.embed_dim, one_row)
    return _projection(config, work) + blocks


def text_forward(config: ClipConfig, work: Work) -> int:
    """Operations of the text tower's forward pass."""
    return _tower(config.text, work.text_tokens, config.embed_dim, work.pooled_only)


def adapter_forward(config: ClipConfig, work: Work) -> int:
    """Operations of the forward pass of what reads sentence embeddings, if there is such a part."""
    adapter = config.adapter
    if adapter is None:
        return 0
    block = 4 * adapter.embedding_dim * adapter.hidden_width
    projection = 2 * adapter.embedding_dim * config.embed_dim
    return len(work.text_tokens) * (adapter.layers * block + projection)


def _projection(config: ClipConfig, work: Work) -> int:
    return 2 * work.embedded_patches * config.vision.patch_dim * config.vision.width


def _tower(
    config: VisionConfig | TextConfig, lengths: Sequence[int], embed_dim: int, pooled_only: bool
) -> int:
    width, tokens, batch_size = config.width, sum(lengths), len(lengths)
    squares = sum(length * length for length in lengths)
    per_row = 4 * width**2 + 4 * width * config.mlp_width  # queries, output, MLP
    keys_values = 4 * width**2 * tokens
    block = per_row * tokens + keys_values + 4 * width * squares
    last = per_row * batch_size + keys_values + 4 * width * tokens if pooled_only else block
    return (config.layers - 1) * block + last + 2 * batch_size * width * embed_dim
