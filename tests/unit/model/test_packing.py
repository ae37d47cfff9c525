"""Packed attention against a loop over sequences."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.model import build_clip
from tessera.model.packing import (
    PackedLayout,
    build_layout,
    packed_attention,
    pad_total,
    sequence_index,
)

HEADS, CHANNELS, MAX_LENGTH = 2, 8, 20


def layout_of(lengths: list[int], *, causal: bool, static: bool = False) -> PackedLayout:
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    rows = offsets[1:].long() - 1 if causal else offsets[:-1].long()
    return build_layout(
        offsets,
        sum(lengths),
        pooled_rows=rows,
        max_length=MAX_LENGTH,
        causal=causal,
        dtype=torch.float32,
        static=static,
    )


def one_by_one(qkv: Tensor, lengths: list[int], *, causal: bool) -> Tensor:
    """[3, T, H, K] to [T, H, K], attention written out."""
    outs = []
    for part in torch.split(qkv, lengths, dim=1):
        q, k, v = part[0], part[1], part[2]
        logits = torch.einsum("qhk,shk->hqs", q, k) / CHANNELS**0.5
        if causal:
            later = torch.ones(len(q), len(q)).triu(1).bool()
            logits = logits.masked_fill(later, float("-inf"))
        outs.append(torch.einsum("hqs,shk->qhk", logits.softmax(dim=-1), v))
    return torch.cat(outs)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [[1], [7], [4, 4, 4], [1, 20, 3, 1, 11], [1, 1, 1], [20, 1]])
def test_equals_a_loop_with_gradients(lengths: list[int], causal: bool, static: bool) -> None:
    torch.manual_seed(len(lengths))
    qkv = torch.randn(3, sum(lengths), HEADS, CHANNELS, requires_grad=True)
    layout = layout_of(lengths, causal=causal, static=static)
    expected = one_by_one(qkv, lengths, causal=causal)
    query, key, value = qkv.unbind(0)
    actual = packed_attention(query, key, value, layout)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), qkv, retain_graph=True)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), qkv)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)

    pooled = packed_attention(query[layout.pooled_rows], key, value, layout, pooled=True)
    torch.testing.assert_close(pooled, expected[layout.pooled_rows], atol=1e-6, rtol=1e-5)


def test_equal_lengths_need_no_scatter() -> None:
    equal = layout_of([4, 4], causal=False).padded
    assert equal is not None
    assert equal.rows is None
    assert equal.key_mask is None
    ragged = layout_of([4, 3], causal=False)
    assert ragged.padded is None
    assert ragged.lengths == (4, 3)


def test_static_shapes_are_those_of_the_longest_that_may_come() -> None:
    layouts = [layout_of(lengths, causal=False, static=True) for lengths in ([4, 3], [6, 1])]
    for layout in layouts:
        assert layout.lengths is None
        assert layout.padded is not None
        assert layout.padded.length == MAX_LENGTH
    first = layouts[0].padded
    assert first is not None
    assert first.rows is not None
    assert first.rows.tolist() == [0, 1, 2, 3, 20, 21, 22]


@given(st.data())
def test_padded_totals_are_few_and_their_sequences_allowed(data: st.DataObject) -> None:
    longest, batch_size = data.draw(st.integers(2, 80)), data.draw(st.integers(1, 40))
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=batch_size, max_size=batch_size))
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    ids = torch.arange(1, sum(lengths) + 1, dtype=torch.int32)
    padded, bounds = pad_total(ids, offsets, longest)
    step = -(-batch_size * longest // 32)
    assert len(padded) % step == 0
    assert len(padded) <= batch_size * longest + 2 * step + 1
    assert padded[: len(ids)].equal(ids)
    assert not padded[len(ids) :].any()
    assert bounds[: batch_size + 1].equal(offsets)
    assert bounds.dtype == torch.int32
    assert bounds[-1] == len(padded)
    extra = bounds[batch_size:].diff()
    assert extra.min() >= 1
    assert extra.max() <= longest
    other, other_bounds = pad_total(ids[:batch_size], torch.arange(batch_size + 1).int(), longest)
    assert len(other_bounds) == len(bounds)
    assert len(other) <= len(padded)


def test_sequence_index_steps_over_empty_sequences() -> None:
    offsets = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    assert sequence_index(offsets, 3).tolist() == [0, 0, 2]


@pytest.mark.parametrize("lengths", [[21], [3, 0]])
def test_lengths_out_of_bounds_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="1 to 20 tokens"):
        layout_of(lengths, causal=True)


def documented_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """What torch's documentation says of varlen_attn, for a machine without CUDA."""
    outs = []
    for i in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[i] : cu_seq_q[i + 1]]
        k, v = key[cu_seq_k[i] : cu_seq_k[i + 1]], value[cu_seq_k[i] : cu_seq_k[i + 1]]
        assert len(q) <= max_q
        assert len(k) <= max_k
        logits = torch.einsum("qhk,shk->hqs", q, k) / CHANNELS**0.5
        if window_size != (-1, 0):
            assert min(window_size) >= max_k, "a narrower window would hide tokens"
        else:
            logits = logits.masked_fill(torch.ones(len(q), len(k)).triu(1).bool(), float("-inf"))
        outs.append(torch.einsum("hqs,shk->qhk", logits.softmax(dim=-1), v))
    return torch.cat(outs)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_path_asks_for_the_same_attention(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessera.model.packing.varlen_attn", documented_varlen_attn)
    padded = layout_of([1, 20, 3, 11], causal=causal)
    flash = dataclasses.replace(padded, padded=None, lengths=None)
    query, key, value = torch.randn(3, 35, HEADS, CHANNELS).unbind(0)
    torch.testing.assert_close(
        packed_attention(query, key, value, flash), packed_attention(query, key, value, padded)
    )
    query = query[padded.pooled_rows]
    torch.testing.assert_close(
        packed_attention(query, key, value, flash, pooled=True),
        packed_attention(query, key, value, padded, pooled=True),
    )


class _CalledOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


def cuda_calls(dtype: torch.dtype) -> list[tuple[str, tuple]]:
    """Operators that a forward on CUDA would run; data-dependent ones raise here."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
            clip = build_clip("tessera-demo")
            offsets = torch.zeros(5, dtype=torch.int32)
            ids = torch.zeros(100, dtype=torch.int32)
            patches = torch.zeros(100, 192, dtype=torch.uint8)
            with _CalledOps() as called:
                image, text, _ = clip(patches, ids, offsets, ids, offsets)
    finally:
        torch.set_default_dtype(before)
    assert image.shape == text.shape == (4, 128)
    return called.calls


def test_cuda_half_precision_runs_flash_attention_and_never_waits_for_the_device() -> None:
    calls = cuda_calls(torch.bfloat16)
    flash = [args for name, args in calls if name.startswith("torch_attn._varlen_attn")]
    # (rows of queries, max_q, max_k, is_causal) of 4 image layers, then 3 text layers
    assert [(len(args[0]), *args[5:8]) for args in flash] == [
        *[(104, 65, 65, False)] * 3,
        (4, 1, 65, False),
        *[(100, 32, 32, True)] * 2,
        (4, 1, 32, False),
    ]
    assert all(tensor.stride(-1) == 1 for args in flash for tensor in args[:3])
    # cuDNN's kernel, whose backward takes no strides, is chosen for no window alone.
    assert [list(args[9]) for args in flash] == [
        *[[65, 65]] * 4, *[[-1, 0]] * 2, [32, 32],
    ]  # fmt: skip
    assert all(args[3].dtype == args[4].dtype == torch.int32 for args in flash)
    assert not any("scaled_dot_product" in name for name, _ in calls)


def test_cuda_float32_runs_the_padded_path_and_never_waits_for_the_device() -> None:
    names = [name for name, _ in cuda_calls(torch.float32)]
    assert not any("varlen" in name for name in names)
