"""Cluster masking against a slow reference written from the equations, and its guarantees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.pipeline.masking import ClusterMask, anchor_similarity, max_anchor_similarity
from tessera.pipeline.patches import CLIP_MEAN, CLIP_STD


def correlation(first: list[float], second: list[float]) -> float:
    """Cosine of two patches after each had its own mean removed, in plain Python."""
    centred = []
    for patch in (first, second):
        mean = math.fsum(patch) / len(patch)
        centred.append([value - mean for value in patch])
    norms = [math.sqrt(math.fsum(v * v for v in patch)) for patch in centred]
    if min(norms) < 1e-9:
        return 0.0
    return math.fsum(a * b for a, b in zip(*centred, strict=True)) / (norms[0] * norms[1])


def slow_similarity(patches: torch.Tensor, anchors: torch.Tensor) -> list[list[float]]:
    """max over anchors j of S_jk, for every patch k of every image."""
    result = []
    for image, places in zip(patches.double().tolist(), anchors.tolist(), strict=True):
        result.append(
            [
                max(1.0 if j == k else correlation(image[j], image[k]) for j in places)
                for k in range(len(image))
            ]
        )
    return result


def slow_budget(
    similarity: list[list[float]], keep: int, least: int, most: int
) -> list[list[bool]]:
    """Keep the `keep` least similar patches of the batch, each image within its bounds."""
    ranked = [sorted(range(len(row)), key=row.__getitem__) for row in similarity]
    kept = [set(order[:least]) for order in ranked]
    rest = sorted(
        (similarity[image][patch], image, patch)
        for image, order in enumerate(ranked)
        for patch in order[least:most]
    )
    for _, image, patch in rest[: keep - sum(map(len, kept))]:
        kept[image].add(patch)
    return [
        [patch in chosen for patch in range(len(row))]
        for chosen, row in zip(kept, similarity, strict=True)
    ]


def pictures(num_images: int, num_patches: int, values: int, seed: int) -> torch.Tensor:
    """Patches with groups of look-alikes in them."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(num_images, 4, values, generator=generator)
    which = torch.randint(0, 4, (num_images, num_patches), generator=generator)
    noise = torch.randn(num_images, num_patches, values, generator=generator)
    return kinds[torch.arange(num_images)[:, None], which] + 0.7 * noise


def test_similarity_is_the_equations() -> None:
    patches = pictures(6, 25, 48, seed=0) * 3 + 1
    anchors = torch.rand(6, 25).topk(3).indices
    ours = max_anchor_similarity(patches, anchors)
    slow = torch.tensor(slow_similarity(patches, anchors), dtype=torch.float64)
    assert (ours.double() - slow).abs().max() < 1e-5


def test_uint8_is_normalised_by_channel_first() -> None:
    """Removing each patch's mean does not undo a scale of its own for each channel."""
    patches = torch.randint(0, 256, (3, 16, 48), dtype=torch.uint8)
    anchors = torch.tensor([[0, 5], [2, 3], [15, 1]])
    pixels = patches.reshape(3, 16, 16, 3).double() / 255
    normalised = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    slow = torch.tensor(slow_similarity(normalised.reshape(3, 16, 48), anchors))
    assert (max_anchor_similarity(patches, anchors) - slow).abs().max() < 1e-5


def test_budget_is_the_slow_reference() -> None:
    patches = pictures(9, 36, 27, seed=1)
    mask = ClusterMask(anchor_ratio=0.1, mask_ratio=0.5, min_mask_ratio=0.3, min_visible=4)
    noise = torch.rand(9, 36)
    anchors = mask.draw_anchors(patches, noise)
    slow = slow_budget(
        slow_similarity(patches, anchors), keep=round(9 * 36 * 0.5), least=4, most=25
    )
    assert (mask.visible(patches, noise) == torch.tensor(slow)).all()


def test_threshold_is_the_paper_within_bounds() -> None:
    patches = pictures(8, 36, 27, seed=2)
    mask = ClusterMask(anchor_ratio=0.1, threshold=0.4, min_mask_ratio=0.0, min_visible=0)
    noise = torch.rand(8, 36)
    slow = torch.tensor(slow_similarity(patches, mask.draw_anchors(patches, noise)))
    assert (mask.visible(patches, noise) == (slow <= 0.4)).all()
    bounded = ClusterMask(anchor_ratio=0.1, threshold=0.4, min_mask_ratio=0.6, min_visible=10)
    visible = bounded.visible(patches, noise)
    counts = (slow <= 0.4).sum(1).clamp(10, math.floor(36 * 0.4))
    assert (visible.sum(1) == counts).all()
    cut = (slow <= 0.4).sum(1) >= counts
    assert not (visible & (slow > 0.4))[cut].any()


@settings(max_examples=60, deadline=None)
@given(
    num_images=st.integers(1, 9),
    side=st.integers(2, 9),
    mask_ratio=st.floats(0.0, 0.95),
    beta_share=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_budget_is_met_exactly_within_bounds(
    num_images: int, side: int, mask_ratio: float, beta_share: float, seed: int
) -> None:
    num_patches = side * side
    beta = mask_ratio * beta_share
    mask = ClusterMask(mask_ratio=mask_ratio, min_mask_ratio=beta)
    patches = pictures(num_images, num_patches, 12, seed)
    visible = mask(patches, generator=torch.Generator().manual_seed(seed))
    total = round(num_images * num_patches * (1 - mask_ratio))
    counts = visible.sum(dim=1)
    assert int(counts.sum()) == total
    assert int(counts.max()) <= max(
        math.floor(num_patches * (1 - beta) + 1e-9), math.ceil(total / num_images)
    )
    assert int(counts.min()) >= min(4, total // num_images)


def test_anchor_count_is_that_of_the_paper() -> None:
    noise = torch.rand(2, 196)
    for ratio, count in ((0.03, 6), (0.05, 10), (0.1, 20)):
        anchors = ClusterMask(anchor_ratio=ratio).draw_anchors(torch.empty(2, 196, 3), noise)
        assert anchors.shape == (2, count)
        assert len(set(anchors[0].tolist())) == count


def test_flat_patches_never_give_nan() -> None:
    patches = torch.rand(4, 16, 12)
    patches[:, :8] = 0.1
    patches[1] = 0.0
    patches[2] = 255.0
    anchors = torch.tensor([[0, 9]] * 4)
    similarity = max_anchor_similarity(patches, anchors)
    assert similarity.isfinite().all()
    assert (similarity[:, 0] == 1).all()
    assert (similarity[2, [1, 5, 12]] == 0).all()
    visible = ClusterMask()(patches, generator=torch.Generator().manual_seed(0))
    assert int(visible.sum()) == 32


def test_white_patches_are_one_cluster() -> None:
    """CLIP's normalisation leaves white with different channels, so white resembles white."""
    patches = torch.randint(0, 256, (1, 16, 48), dtype=torch.uint8)
    patches[0, 4:] = 255
    assert (max_anchor_similarity(patches, torch.tensor([[7]]))[0, 4:] > 0.9999).all()


def test_equal_patches_are_dropped_at_random() -> None:
    patches = torch.rand(1, 1, 12).expand(64, 36, 12).contiguous()
    visible = ClusterMask(min_mask_ratio=0.5)(patches, generator=torch.Generator().manual_seed(0))
    share = visible.float().mean(dim=0)
    assert share.min() > 0.2
    assert share.max() < 0.8


def test_images_do_not_depend_on_the_order_of_the_batch() -> None:
    patches, noise = pictures(7, 36, 27, seed=3), torch.rand(7, 36)
    turned = torch.randperm(7)
    mask = ClusterMask()
    assert (
        mask.visible(patches[turned], noise[turned]) == mask.visible(patches, noise)[turned]
    ).all()


def test_the_callers_patches_are_left_alone() -> None:
    patches = pictures(2, 16, 12, seed=4)
    before = patches.clone()
    anchor_similarity(patches, torch.tensor([[0, 1], [2, 3]]))
    assert (patches == before).all()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="min_mask_ratio"):
        ClusterMask(mask_ratio=0.3, min_mask_ratio=0.5)
    with pytest.raises(ValueError, match="mask_ratio"):
        ClusterMask(mask_ratio=1.0)
    with pytest.raises(ValueError, match="anchor_ratio"):
        ClusterMask(anchor_ratio=0.0)
