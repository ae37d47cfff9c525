"""The losses on a CUDA device against formulas in float64, and their memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.model import LossConfig, build_loss
from tessera.model.losses.config import METHODS
from tests.unit.model.losses import reference

pytestmark = pytest.mark.gpu
PAIRS = 1500
SCALE = 50.0


def features(seed: int, device: torch.device, count: int = PAIRS) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 64, generator=draw)
    texts = images + torch.randn(count, 64, generator=draw)
    return (
        F.normalize(images, dim=1).to(device).requires_grad_(),
        F.normalize(texts, dim=1).to(device).requires_grad_(),
    )


def arrays(pairs: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    images, texts = (each.detach().cpu().double().numpy() for each in pairs)
    return images, texts


def assert_close(found: Sequence[Tensor], wanted: reference.Result, tolerance: float) -> None:
    for gradient, other in zip(found, (wanted.by_images, wanted.by_texts), strict=True):
        error = np.abs(gradient.cpu().double().numpy() - other).max()
        assert error < tolerance * np.abs(other).max()


@pytest.mark.parametrize("tile_size", [0, 512])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_stateless_losses(kind: str, tile_size: int, device: torch.device) -> None:
    pairs = features(0, device)
    config = LossConfig(kind=kind, tile_size=tile_size)  # pyright: ignore[reportArgumentType]
    loss = build_loss(config, num_samples=PAIRS, steps_per_pass=2).to(device)
    scale, bias = (torch.tensor(value, device=device) for value in (SCALE, -10.0))
    inputs = {"logit_bias": bias} if kind == "siglip" else {}
    value = loss(*pairs, scale, **inputs)
    wanted = (
        reference.siglip(*arrays(pairs), SCALE, -10.0)
        if kind == "siglip"
        else reference.clip(*arrays(pairs), SCALE)
    )
    # Logits reach 50: one rounds by 2e-6 in float32, their mean over the pairs by some 1e-7.
    assert value.item() == pytest.approx(wanted.value, rel=1e-5, abs=5e-7)
    assert_close(torch.autograd.grad(value, pairs), wanted, 2e-5)


@pytest.mark.parametrize("tile_size", [0, 512])
@pytest.mark.parametrize("kind", sorted(METHODS))
def test_losses_with_state(kind: str, tile_size: int, device: torch.device) -> None:
    config = LossConfig(kind=kind, tile_size=tile_size, gamma_decay_passes=3)  # pyright: ignore[reportArgumentType]
    loss = build_loss(config, num_samples=2 * PAIRS, steps_per_pass=2).to(device)
    wanted = reference.FastClip(config, num_samples=2 * PAIRS, steps_per_pass=2)
    scale = torch.tensor(20.0, device=device)
    for step in range(5):
        ids = (torch.arange(PAIRS) * 7 + step * 500) % (2 * PAIRS)
        pairs = features(step, device)
        value = loss(*pairs, scale, sample_ids=ids.to(device), step=step)
        expected = wanted.step(*arrays(pairs), 20.0, ids.numpy(), step)
        assert value.item() == pytest.approx(expected.value, rel=1e-4, abs=1e-5)
        assert_close(torch.autograd.grad(value, pairs), expected, 5e-4)


def test_memory_grows_with_the_batch_and_not_with_its_square(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("torch counts allocations on CUDA only")
    loss = build_loss(LossConfig(tile_size=1024), num_samples=1, steps_per_pass=1)
    peaks = []
    for count in (8192, 32768):
        pairs = features(0, device, count)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(*pairs, torch.tensor(SCALE, device=device)).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 6 * peaks[0]
