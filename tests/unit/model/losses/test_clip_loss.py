"""The contrastive loss against open_clip's."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F

from tessera.model import clip_loss


def unit_features(count: int, dim: int = 16) -> torch.Tensor:
    return F.normalize(torch.randn(count, dim), dim=-1).requires_grad_()


@pytest.mark.parametrize("batch_size", [1, 2, 37])
def test_equals_open_clip_with_gradients(batch_size: int) -> None:
    torch.manual_seed(batch_size)
    inputs = unit_features(batch_size), unit_features(batch_size), torch.tensor(30.0)
    inputs[2].requires_grad_()
    ours, theirs = clip_loss(*inputs), open_clip.ClipLoss()(*inputs)
    torch.testing.assert_close(ours, theirs)
    wanted = torch.autograd.grad(theirs, inputs)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), wanted, atol=1e-6, rtol=1e-5)


def test_right_pairs_cost_less_than_wrong_ones() -> None:
    features = unit_features(8)
    scale = torch.tensor(100.0)
    assert clip_loss(features, features, scale) < clip_loss(features, features.roll(1, 0), scale)


def test_autocast_does_not_round_logits() -> None:
    torch.manual_seed(0)
    features = unit_features(8), unit_features(8), torch.tensor(100.0)
    exact = clip_loss(*features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip_loss(*features), exact)


@pytest.mark.parametrize("shape", [(7, 16), (8, 15), (8,)])
def test_shapes_that_differ_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[B, d\] and \[B\*R, d\]"):
        clip_loss(unit_features(8), torch.zeros(shape), torch.tensor(1.0))
