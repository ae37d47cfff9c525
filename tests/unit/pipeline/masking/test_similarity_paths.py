"""The fast ways to a similarity give what the definition gives."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tessera.pipeline.masking import native_similarity, similarity
from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD

Similarity = Callable[[Tensor, Tensor], Tensor]


def by_definition(patches: Tensor, anchors: Tensor) -> Tensor:
    """Pearson correlation in float64; a patch of no variance has none."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (CLIP_MEAN, CLIP_STD))
    pixels = patches.double().unflatten(2, (-1, 3)) / 255
    values = ((pixels - mean) / std).flatten(2)
    values = values - values.mean(dim=2, keepdim=True)
    norm = values.norm(dim=2, keepdim=True)
    units = torch.where(norm > 1e-6, values / norm, torch.zeros_like(values))
    chosen = torch.stack([unit[places] for unit, places in zip(units, anchors, strict=True)])
    return torch.bmm(units, chosen.mT).amax(dim=2).scatter_(1, anchors, 1.0)


def photos(num_images: int, num_patches: int, num_values: int) -> Tensor:
    """Noise around a level for each patch, with flat, nearly flat, white and black ones."""
    generator = torch.Generator().manual_seed(num_values)
    level = torch.randint(0, 256, (num_images, num_patches, 1), generator=generator)
    noise = torch.randint(-25, 26, (num_images, num_patches, num_values), generator=generator)
    patches = (level + noise).clamp(0, 255).to(torch.uint8)
    patches[:, 0], patches[:, 1], patches[:, 2] = 255, 0, 77
    patches[:, 2, 0] = 78
    patches[:, 3] = patches[:, 4]
    # Levels of the channels that CLIP's normalisation makes nearly equal.
    patches[:, 5] = torch.tensor([123, 117, 104], dtype=torch.uint8).repeat(num_values // 3)
    return patches


@pytest.mark.parametrize(
    ("path", "tolerance"),
    [
        (native_similarity.max_anchor_similarity, 2e-6),
        (lambda *given: similarity.anchor_similarity(*given).amax(dim=2), 5e-4),
    ],
)
@pytest.mark.parametrize("num_values", [3, 27, 48, 192, 588, 768, 3072])
@pytest.mark.parametrize("num_anchors", [1, 3, 6, 7])
def test_fast_paths_are_the_definition(
    path: Similarity, tolerance: float, num_values: int, num_anchors: int
) -> None:
    patches = photos(5, 40, num_values)
    generator = torch.Generator().manual_seed(num_anchors)
    anchors = torch.rand(5, 40, generator=generator).topk(num_anchors, dim=1).indices
    found = path(patches, anchors)
    assert found is not None
    assert torch.isfinite(found).all()
    torch.testing.assert_close(
        found.double(), by_definition(patches, anchors), atol=tolerance, rtol=0
    )
    assert (found.gather(1, anchors) == 1).all()


def test_flat_patches_and_flat_anchors_resemble_nothing() -> None:
    patches = photos(2, 20, 768)
    patches[:, :4] = torch.tensor([123, 117, 104], dtype=torch.uint8).repeat(256)
    exact = by_definition(patches, torch.tensor([[0, 9], [10, 11]]))
    found = native_similarity.max_anchor_similarity(patches, torch.tensor([[0, 9], [10, 11]]))
    assert found is not None
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=0)


def test_sums_of_the_largest_patches_do_not_overflow() -> None:
    patches = torch.zeros(1, 3, native_similarity.MAX_VALUES, dtype=torch.uint8)
    patches[0, 1, ::2] = 255
    patches[0, 2, 1:] = 255
    anchors = torch.tensor([[1]])
    found = native_similarity.max_anchor_similarity(patches, anchors)
    assert found is not None
    assert native_similarity.max_anchor_similarity(patches.repeat(1, 1, 2), anchors) is None
    torch.testing.assert_close(found.double(), by_definition(patches, anchors), atol=2e-6, rtol=0)


def test_threads_give_the_same() -> None:
    patches, before = photos(33, 49, 192), torch.get_num_threads()
    anchors = torch.rand(33, 49).topk(2, dim=1).indices
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(native_similarity.max_anchor_similarity(patches, anchors))
    finally:
        torch.set_num_threads(before)
    assert results[0] is not None
    assert results[0].equal(results[1])


def test_patches_that_are_a_view_are_read_right() -> None:
    patches = photos(4, 40, 192)
    anchors = torch.rand(2, 40).topk(2, dim=1).indices
    found = native_similarity.max_anchor_similarity(patches[::2], anchors)
    expected = native_similarity.max_anchor_similarity(patches[::2].clone(), anchors)
    assert found is not None
    assert expected is not None
    assert found.equal(expected)


def test_without_the_extension_torch_does_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tessera._native", None)
    native_similarity._native.cache_clear()
    try:
        patches = photos(2, 20, 192)
        anchors = torch.tensor([[7], [8]])
        found = similarity.max_anchor_similarity(patches, anchors)
        expected = similarity.anchor_similarity(patches, anchors).amax(dim=2)
    finally:
        native_similarity._native.cache_clear()
    assert found.equal(expected)
    assert "until then torch computes the cluster mask" in caplog.text


@pytest.mark.parametrize(
    ("anchors", "complaint"),
    [
        (torch.tensor([[0, 40]] * 5), "places 0 to 39, got 0 to 40"),
        (torch.tensor([[0, -1]] * 5), "places 0 to 39, got -1 to 0"),
        (torch.tensor([[0, 1]] * 4), "anchors of 5 images"),
        (torch.tensor([[0.0, 1.0]] * 5), "whole numbers"),
    ],
)
def test_anchors_that_are_no_places_are_refused(anchors: Tensor, complaint: str) -> None:
    """Compiled code would write to memory that is not its own."""
    with pytest.raises(ValueError, match=complaint):
        similarity.max_anchor_similarity(photos(5, 40, 48), anchors)


def test_places_may_be_of_32_bits() -> None:
    patches, places = photos(5, 40, 48), torch.tensor([[3, 17]] * 5)
    found = similarity.max_anchor_similarity(patches, places.int())
    assert torch.equal(found, similarity.max_anchor_similarity(patches, places))
