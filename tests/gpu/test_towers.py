"""Packed towers on a CUDA device against the same weights in float64 on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tessera.model import Clip, build_clip, clip_loss

pytestmark = pytest.mark.gpu
LENGTHS = [1, 196, 60, 137, 98, 2, 64, 65]
CAPTIONS = [2, 77, 20, 5, 33, 12, 64, 9]


def inputs(clip: Clip) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(3)
    vision = clip.config.vision
    lengths = [min(length, vision.num_patches) for length in LENGTHS]
    captions = [min(length, clip.config.text.context_length) for length in CAPTIONS]
    tokens = [torch.randint(1, 40_000, (length,), generator=draw) for length in captions]
    return (
        torch.randint(0, 256, (sum(lengths), vision.patch_dim), generator=draw).to(torch.uint8),
        torch.cat([torch.randperm(vision.num_patches, generator=draw)[:n] for n in lengths]).int(),
        torch.tensor([0, *lengths]).cumsum(0).int(),
        torch.cat(tokens).int(),
        torch.tensor([0, *captions]).cumsum(0).int(),
    )


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-S-16-alt"])
def test_float32_is_float64_but_for_rounding(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    exact = build_clip(name).double()
    ours = build_clip(name).to(device)
    ours.load_state_dict(exact.state_dict())
    batch = inputs(exact)
    torch.backends.cuda.matmul.allow_tf32 = False
    found, wanted = ours(*(part.to(device) for part in batch)), exact(*batch)
    for feature, reference in zip(found[:2], wanted[:2], strict=True):
        assert (feature.cpu().double() - reference).abs().max() < 5e-6
    for clip, features in ((ours, found), (exact, wanted)):
        clip_loss(*features).backward()
        assert all(weight.grad is not None for weight in clip.parameters())
    gradients = [torch.cat([w.grad.cpu().double().flatten() for w in c.parameters()])  # pyright: ignore[reportOptionalMemberAccess]
                 for c in (ours, exact)]  # fmt: skip
    assert (gradients[0] - gradients[1]).norm() < 2e-5 * gradients[1].norm()
