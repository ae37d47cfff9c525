"""Flash attention over packed sequences on CUDA against the padded path in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tessera.model import Clip, build_clip, clip_loss
from tessera.model.execution import configure
from tessera.model.packing import build_layout, packed_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# max_length on both sides of 128, from where varlen_attn may take cuDNN's kernel on Hopper, and
# lengths short of it, since the model passes an upper bound.
CASES = [([50, 1, 33, 20], 65), ([98, 137, 1, 70, 197], 197), ([12, 77, 3], 77)]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def attend(
    qkv: Tensor, lengths: list[int], max_length: int, *, causal: bool, pooled: bool
) -> tuple[Tensor, Tensor]:
    """Output and the gradient of a fixed sum of it."""
    qkv = qkv.detach().requires_grad_()
    offsets = offsets_of(lengths).to(qkv.device)
    layout = build_layout(
        offsets,
        sum(lengths),
        pooled_rows=offsets[1:].long() - 1 if causal else offsets[:-1].long(),
        max_length=max_length,
        causal=causal,
        dtype=qkv.dtype,
    )
    runs_flash = layout.padded is None and layout.lengths is None
    assert runs_flash == (qkv.is_cuda and qkv.dtype == torch.bfloat16)
    query, key, value = qkv.unbind(1)
    asking = query[layout.pooled_rows] if pooled else query
    out = packed_attention(asking, key, value, layout, pooled=pooled)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    (gradient,) = torch.autograd.grad((out.float() * weights).sum(), qkv)
    return out.float().cpu(), gradient.float().cpu()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("lengths", "max_length"), CASES)
def test_flash_equals_padded(
    lengths: list[int], max_length: int, causal: bool, pooled: bool
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 4, 64).bfloat16()
    wanted = attend(qkv.float(), lengths, max_length, causal=causal, pooled=pooled)
    for device_qkv, tolerance in ((qkv.cuda(), 2e-2), (qkv.float().cuda(), 1e-4)):
        got = attend(device_qkv, lengths, max_length, causal=causal, pooled=pooled)
        for actual, expected in zip(got, wanted, strict=True):
            assert (actual - expected).norm() <= tolerance * expected.norm()


def batch(device: str) -> list[Tensor]:
    torch.manual_seed(1)
    lengths = [98, 137, 20, 196]
    captions = [20, 5, 40, 13]
    tensors = [
        torch.randint(0, 256, (sum(lengths), 768), dtype=torch.uint8),
        torch.cat([torch.randperm(196)[:n] for n in lengths]).int(),
        offsets_of(lengths),
        torch.randint(0, 49406, (sum(captions),), dtype=torch.int32),
        offsets_of(captions),
    ]
    return [tensor.to(device) for tensor in tensors]


def loss_and_gradients(clip: Clip, device: str) -> tuple[list[Tensor], Tensor]:
    clip.zero_grad()
    features = clip(*batch(device))
    clip_loss(*features).backward()
    gradients = [p.grad.flatten() for p in clip.parameters() if p.grad is not None]
    return [f.detach().cpu() for f in features[:2]], torch.cat(gradients).cpu()


def test_model_in_bfloat16_agrees_with_the_cpu() -> None:
    torch.manual_seed(0)
    clip = build_clip("tessera-xs-16")
    wanted, wanted_gradient = loss_and_gradients(clip, "cpu")
    clip = clip.cuda()
    configure(clip, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
    got, gradient = loss_and_gradients(clip, "cuda")
    for actual, expected in zip(got, wanted, strict=True):
        assert (actual * expected).sum(dim=1).min() > 0.999
    cosine = torch.nn.functional.cosine_similarity(gradient, wanted_gradient, dim=0)
    assert cosine > 0.98


def test_forward_and_backward_never_wait_for_the_device() -> None:
    clip = build_clip("tessera-xs-16").cuda()
    configure(clip, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
    inputs = batch("cuda")
    clip_loss(*clip(*inputs)).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_loss(*clip(*inputs)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
