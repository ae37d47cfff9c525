"""The cluster mask on a CUDA device against the same on the CPU."""

from __future__ import annotations

import pytest
import torch

from pipeline.masking import ClusterMask, anchor_similarity, max_anchor_similarity

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


@pytest.mark.parametrize("shape", [(33, 196, 768), (3, 35, 48), (2, 49, 3072)])
def test_similarity_is_the_cpus(shape: tuple[int, int, int]) -> None:
    patches, noise = draw(*shape)
    anchors = noise.topk(6, dim=1).indices
    wanted = anchor_similarity(patches, anchors).amax(dim=2)
    got = max_anchor_similarity(patches.cuda(), anchors.cuda()).cpu()
    assert (got - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["budget", "threshold", "topk", "fill"])
def test_masks_are_the_cpus_without_waiting_for_the_host(mode: str) -> None:
    patches, noise = draw(64, 196, 768)
    threshold = 0.5 if mode in ("threshold", "fill") else None
    mask = ClusterMask(threshold=threshold, mode=mode)  # pyright: ignore[reportArgumentType]
    on_device, device_noise = patches.cuda(), noise.cuda()
    mask.visible(on_device, device_noise)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = mask.visible(on_device, device_noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    reference = anchor_similarity(patches, mask.draw_anchors(noise)).amax(dim=2)
    differs = got.cpu() != mask.choose(reference, noise)
    assert differs.float().mean() < 5e-4, "only patches within rounding of the threshold"


def test_packing_gathers_what_is_visible() -> None:
    from pipeline.masking.triton_cluster import pack_visible

    patches, noise = draw(32, 196, 768)
    visible = ClusterMask().visible(patches, noise)
    packed, places, offsets = pack_visible(patches.cuda(), visible.cuda(), int(visible.sum()))
    assert (packed.cpu() == patches[visible]).all()
    assert (places.cpu() == visible.nonzero()[:, 1]).all()
    assert (offsets.cpu()[1:] == visible.sum(dim=1).cumsum(0)).all()
