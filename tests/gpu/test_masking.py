"""The cluster mask on a CUDA device against the same on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tessera.pipeline.masking import (
    ClusterMask,
    EdgeAwareMask,
    anchor_similarity,
    max_anchor_similarity,
    pack_visible,
)
from tessera.pipeline.masking.edge_aware import edge_strength

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def draw(num_images: int, num_patches: int, num_values: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(num_images, num_patches, 1, generator=generator) ** 3 * 60
    level = torch.rand(num_images, num_patches, 1, generator=generator) * 255
    values = level + spread * torch.randn(num_images, num_patches, num_values, generator=generator)
    noise = torch.rand(num_images, num_patches, generator=generator)
    return values.clamp(0, 255).byte(), noise


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that kernels get for their results is full of NaN, or of the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "shape",
    [(33, 196, 768), (3, 35, 48), (2, 49, 3072), (1, 1, 12), (257, 16, 147), (4, 576, 588)],
)
def test_similarity_is_the_cpus(shape: tuple[int, int, int]) -> None:
    patches, noise = draw(*shape)
    anchors = noise.topk(min(6, shape[1]), dim=1).indices
    wanted = anchor_similarity(patches, anchors)
    every = anchor_similarity(patches.cuda(), anchors.cuda()).cpu()
    assert (every - wanted).abs().max() < 1e-5
    largest = max_anchor_similarity(patches.cuda(), anchors.cuda()).cpu()
    assert (largest == every.amax(dim=2)).all()


def visible_without_waiting(
    mask: ClusterMask, patches: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Mask and pack on the device, where anything that waits for it is an error."""
    on_device, device_noise = patches.cuda(), noise.cuda()
    count = mask.num_visible(*noise.shape)

    def chain() -> tuple[torch.Tensor, torch.Tensor | None]:
        visible = mask.visible(on_device, device_noise)
        # Where the count is not known beforehand, packing has to wait for it.
        packed = None if count is None else pack_visible(on_device, visible, count)[0]
        return visible, packed

    chain()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        visible, packed = chain()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if packed is not None:
        assert (packed.cpu() == patches[visible.cpu()]).all()
    return visible


@pytest.mark.parametrize("mode", ["budget", "threshold", "topk", "fill"])
def test_masks_are_the_cpus_without_waiting_for_the_host(mode: str) -> None:
    patches, noise = draw(64, 196, 768)
    threshold = 0.5 if mode in ("threshold", "fill") else None
    mask = ClusterMask(threshold=threshold, mode=mode)  # pyright: ignore[reportArgumentType]
    got = visible_without_waiting(mask, patches, noise)
    reference = anchor_similarity(patches, mask.draw_anchors(patches, noise)).amax(dim=2)
    differs = got.cpu() != mask.choose(reference, noise)
    assert differs.float().mean() < 5e-4, "only patches within rounding of the threshold"


def test_edges_and_edge_aware_masks_are_the_cpus() -> None:
    patches, noise = draw(64, 196, 768)
    assert (edge_strength(patches.cuda()).cpu() == edge_strength(patches)).all()
    mask = EdgeAwareMask(group_size=16)
    got = visible_without_waiting(mask, patches, noise)
    assert [int(group.sum()) for group in got.split(16)] == [16 * 98] * 4
    differs = got.cpu() != mask.visible(patches, noise)
    assert differs.float().mean() < 5e-3, "only patches within rounding of the threshold"


def test_packing_gathers_what_is_visible() -> None:
    patches, noise = draw(32, 196, 768)
    visible = ClusterMask().visible(patches, noise)
    packed, places, offsets = pack_visible(patches.cuda(), visible.cuda(), int(visible.sum()))
    assert (packed.cpu() == patches[visible]).all()
    assert (places.cpu() == visible.nonzero()[:, 1]).all()
    assert (offsets.cpu()[1:] == visible.sum(dim=1).cumsum(0)).all()
