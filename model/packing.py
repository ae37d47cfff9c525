"""Sequences laid end to end, and attention that stays inside each of them.

Shapes: B sequences in the batch (an image with its class token, or a caption), T tokens of
all of them together, L the longest, H heads, K channels of a head.

A packed tensor is [T, ...]; sequence i owns rows offsets[i] .. offsets[i+1] - 1. Three
equivalent ways through attention:

- CUDA in half precision: flash attention for variable lengths reads the packed tensors.
- CPU: the host knows the lengths, so scaled dot product attention runs on each sequence's rows,
  or on all at once where the lengths are equal. No place is empty.
- where shapes may not depend on the lengths (CUDA in float32, compiled blocks on a CPU): queries,
  keys and values are spread over [B, L], the empty places are masked, and the result is gathered.
  Only attention sees those places; no linear layer or norm does.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

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
    """Type that blocks compute in."""
    padded: PaddedPlaces | None
    """Places for the padded path; None on the two others."""
    lengths: tuple[int, ...] | None
    """B lengths for the path of one sequence at a time; None on the two others."""

    @property
    def batch_size(self) -> int:
        """Number of sequences B."""
        return self.pooled_rows.shape[0]


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
    static: bool = False,
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
        static: Let no shape depend on the lengths, only on their number and sum.

    Raises:
        ValueError: Not on CUDA: the offsets do not go from 0 to T, or a sequence is empty or
            longer than `max_length`.
    """
    padded = lengths = None
    if offsets.is_cuda:
        if dtype not in _FLASH_DTYPES:
            padded = _padded_places(offsets, num_tokens, max_length)
    else:
        lengths = checked_lengths(offsets, num_tokens, max_length)
        if static:
            padded, lengths = _padded_places(offsets, num_tokens, max_length), None
        elif len(set(lengths)) == 1:
            padded, lengths = PaddedPlaces(length=lengths[0], rows=None, key_mask=None), None
    return PackedLayout(
        offsets=offsets,
        pooled_rows=pooled_rows,
        pooled_offsets=torch.arange(offsets.shape[0], dtype=torch.int32, device=offsets.device),
        max_length=max_length,
        causal=causal,
        dtype=dtype,
        padded=padded,
        lengths=lengths,
    )


def checked_lengths(offsets: Tensor, num_tokens: int, max_length: int) -> tuple[int, ...]:
    """Lengths of all sequences, after checking them (reads the device).

    Raises:
        ValueError: See `build_layout`.
    """
    bounds = offsets.tolist()
    first, last = bounds[0], bounds[-1]
    if first != 0 or last != num_tokens:
        raise ValueError(f"offsets must go from 0 to {num_tokens}, got {first} to {last}")
    lengths = tuple(after - before for before, after in pairwise(bounds))
    shortest, longest = min(lengths), max(lengths)
    if shortest < 1 or longest > max_length:
        raise ValueError(
            f"a sequence must have 1 to {max_length} tokens, got {shortest} to {longest} in this "
            "batch; cut captions to the model's context_length when they are tokenised, and "
            "images to its image_size when they are cropped"
        )
    return lengths


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
    causal = layout.causal and not pooled
    if layout.lengths is not None:
        asking = (1,) * layout.batch_size if pooled else layout.lengths
        return _one_by_one(query.split(asking), key, value, layout.lengths, causal=causal)
    if layout.padded is None:
        return _flash(query, key, value, layout, pooled=pooled)
    places = layout.padded
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


def _one_by_one(
    queries: tuple[Tensor, ...],
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    *,
    causal: bool,
) -> Tensor:
    """The rows of each sequence on their own, as [1, H, rows, K]."""
    heads_first = (
        [part.transpose(0, 1).unsqueeze(0) for part in parts]
        for parts in (queries, key.split(lengths), value.split(lengths))
    )
    outs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        for q, k, v in zip(*heads_first, strict=True)
    ]
    return torch.cat([out.squeeze(0).transpose(0, 1) for out in outs])


def _flash(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, pooled: bool
) -> Tensor:
    # A window as wide as the sequences hides nothing, and flash attention drops it. It keeps torch
    # from cuDNN's kernel, which some releases take for long sequences without a window on H100
    # and later: only flash's backward honours the strides of parts of one qkv product.
    wide = (layout.max_length, layout.max_length)
    out = varlen_attn(
        query,
        key,
        value,
        layout.pooled_offsets if pooled else layout.offsets,
        layout.offsets,
        1 if pooled else layout.max_length,
        layout.max_length,
        window_size=(-1, 0) if layout.causal and not pooled else wide,
    )
    assert isinstance(out, Tensor)
    return out


def pad_total(ids: Tensor, offsets: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Appends sequences of zeros so that totals of like batches come out the same.

    Compiled code is made for a total; these are the multiples of 1/32 of the largest possible one,
    with room for the appended sequences. They reach no other sequence, and what they become is
    for the caller to drop. Nothing is read from the device.

    Args:
        ids: [T] token ids.
        offsets: [B+1] int32.
        max_length: Most tokens that a sequence may have.

    Returns:
        [T'] ids and [B'+1] offsets. B' depends on B and `max_length` only.
    """
    num_tokens, batch_size = ids.shape[0], offsets.shape[0] - 1
    step = -(-batch_size * max_length // 32)
    # At least one token each, at most max_length, whatever is missing to the next multiple.
    num_extra = max(1, -(-(step - 1) // max(1, max_length - 1)))
    total = -(-(num_tokens + num_extra) // step) * step
    missing = total - num_tokens
    ends = torch.arange(1, num_extra + 1, device=offsets.device) * missing // num_extra
    return (
        torch.cat([ids, ids.new_zeros(missing)]),
        torch.cat([offsets, (ends + num_tokens).to(offsets.dtype)]),
    )


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
