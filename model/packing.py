"""Sequences laid end to end, and attention that stays inside each of them.

Shapes: B sequences in the batch (an image with its class token, or a caption), T tokens of
all of them together, L the longest, H heads, K channels of a head.

A packed tensor is [T, ...]; sequence i owns rows offsets[i] .. offsets[i+1] - 1. Two
equivalent ways through attention:

- CUDA in half precision: torch's variable-length flash attention reads the packed tensors.
- everywhere else: queries, keys and values are spread over [B, L], go through scaled dot
  product attention with the empty places masked, and the result is gathered. Only attention
  sees those places; no linear layer or norm does.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_FLASH_DTYPES = (torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PaddedPlaces:
    """Where packed rows lie in the [B, L] grid of the padded path."""

    length: int
    """L, places of each sequence."""
    rows: Tensor | None
    """[T] int64, place of each token in the flattened grid; None where every sequence has
    L tokens, so that packed and padded are the same memory."""
    key_mask: Tensor | None
    """[B, 1, 1, L] bool, True where a token lies; None where `rows` is."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackedLayout:
    """What all layers of a tower need to know of a batch; computed once per forward."""

    offsets: Tensor
    """[B+1] int32, first row of each sequence, and T."""
    pooled_rows: Tensor
    """[B] int64, the one row of each sequence that becomes its feature."""
    pooled_offsets: Tensor
    """[B+1] int32, 0 .. B: offsets of the pooled rows when they are packed on their own."""
    max_length: int
    """Upper bound of a sequence's length, known without asking the device."""
    causal: bool
    """Whether a token sees only itself and those before it."""
    dtype: torch.dtype
    """Type that linear layers compute in (the autocast type where that is on)."""
    padded: PaddedPlaces | None
    """Places for the padded path; None where flash attention runs."""

    @property
    def batch_size(self) -> int:
        """Number of sequences B."""
        return self.pooled_rows.shape[0]


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Type in which a linear layer with this weight computes here and now."""
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def sequence_index(offsets: Tensor, num_tokens: int) -> Tensor:
    """Number of the sequence that each packed row belongs to.

    Args:
        offsets: [B+1] int32.
        num_tokens: T.

    Returns:
        [T] int64.
    """
    rows = torch.arange(num_tokens, dtype=offsets.dtype, device=offsets.device)
    return torch.bucketize(rows, offsets[1:], right=True)


def build_layout(
    offsets: Tensor,
    num_tokens: int,
    *,
    pooled_rows: Tensor,
    max_length: int,
    causal: bool,
    dtype: torch.dtype,
) -> PackedLayout:
    """Prepares a batch for `packed_attention`.

    On CUDA nothing is read back from the device, so lengths are not checked there.

    Args:
        offsets: [B+1] int32.
        num_tokens: T, the last offset.
        pooled_rows: [B] int64, see PackedLayout. A causal tower pools each sequence's last row.
        max_length: Most tokens that a sequence may have.
        causal: See PackedLayout.
        dtype: Type of queries, keys and values.

    Raises:
        ValueError: Not on CUDA: the offsets do not go from 0 to T, or a sequence is empty or
            longer than `max_length`.
    """
    padded = None
    if not (offsets.is_cuda and dtype in _FLASH_DTYPES):
        length = max_length if offsets.is_cuda else longest(offsets, num_tokens, max_length)
        padded = _padded_places(offsets, num_tokens, length)
    return PackedLayout(
        offsets=offsets,
        pooled_rows=pooled_rows,
        pooled_offsets=torch.arange(offsets.shape[0], dtype=torch.int32, device=offsets.device),
        max_length=max_length,
        causal=causal,
        dtype=dtype,
        padded=padded,
    )


def longest(offsets: Tensor, num_tokens: int, max_length: int) -> int:
    """Length of the longest sequence, after checking all of them (reads the device).

    Raises:
        ValueError: See `build_layout`.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != num_tokens:
        raise ValueError(f"offsets must go from 0 to {num_tokens}, got {first} to {last}")
    lengths = offsets.diff()
    shortest, length = int(lengths.min()), int(lengths.max())
    if shortest < 1 or length > max_length:
        raise ValueError(
            f"a sequence must have 1 to {max_length} tokens, got {shortest} to {length} in this "
            "batch; cut captions to the model's context_length when they are tokenised, and "
            "images to its image_size when they are cropped"
        )
    return length


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, pooled: bool = False
) -> Tensor:
    """Softmax attention of each sequence over itself.

    Args:
        query: [T, H, K]; with `pooled` [B, H, K], queries of the pooled rows alone.
        key: [T, H, K].
        value: [T, H, K].
        layout: The batch's layout.
        pooled: Whether only pooled rows ask. They see their whole sequence, which for a causal
            layout holds because the pooled row is the last.

    Returns:
        Same shape and type as `query`.
    """
    if layout.padded is None:
        return _flash(query, key, value, layout, pooled=pooled)
    places = layout.padded
    causal = layout.causal and not pooled
    num_queries = 1 if pooled else places.length
    out = F.scaled_dot_product_attention(
        query.unsqueeze(2) if pooled else _spread(query, layout.batch_size, places),
        _spread(key, layout.batch_size, places),
        _spread(value, layout.batch_size, places),
        # Right-hand padding lies after every real token, where a causal row never looks.
        attn_mask=None if causal else places.key_mask,
        is_causal=causal,
    )
    out = out.transpose(1, 2).reshape(layout.batch_size * num_queries, *query.shape[1:])
    return out if pooled or places.rows is None else out.index_select(0, places.rows)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, pooled: bool
) -> Tensor:
    # The kernels behind varlen_attn differ in whether their backward honours strides (cuDNN's
    # writes gradients with the stride of its inputs), so only contiguous tensors go in.
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        layout.pooled_offsets if pooled else layout.offsets,
        layout.offsets,
        1 if pooled else layout.max_length,
        layout.max_length,
        window_size=(-1, 0) if layout.causal and not pooled else (-1, -1),
    )
    assert isinstance(out, Tensor)
    return out


def _padded_places(offsets: Tensor, num_tokens: int, length: int) -> PaddedPlaces:
    batch_size = offsets.shape[0] - 1
    if num_tokens == batch_size * length:
        return PaddedPlaces(length=length, rows=None, key_mask=None)
    sequence = sequence_index(offsets, num_tokens)
    tokens = torch.arange(num_tokens, device=offsets.device)
    places = torch.arange(length, device=offsets.device)
    return PaddedPlaces(
        length=length,
        rows=tokens - offsets[sequence] + sequence * length,
        key_mask=(places < offsets.diff().unsqueeze(1))[:, None, None, :],
    )


def _spread(packed: Tensor, batch_size: int, places: PaddedPlaces) -> Tensor:
    """[T, H, K] to [B, H, L, K], zero where no token lies."""
    if places.rows is not None:
        grid = packed.new_zeros(batch_size * places.length, *packed.shape[1:])
        packed = grid.index_copy(0, places.rows, packed)
    return packed.unflatten(0, (batch_size, places.length)).transpose(1, 2)
