"""The modes of cluster masking, its calibration, its embedding, and the short form for pixels."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tessera.pipeline.masking import (
    ClusterMask,
    KMeansMask,
    MaskConfig,
    PatchEmbedding,
    anchor_similarity,
    max_anchor_similarity,
)
from tessera.pipeline.masking.similarity import rows_of
from tessera.pipeline.patches import normalise, patchify

CLOTHING = Path(__file__).resolve().parents[5] / "shared" / "data" / "clothing" / "00000.tar"


def exact_similarity(patches: Tensor, anchors: Tensor) -> Tensor:
    """The definition in float64."""
    values = normalise(patches).double()
    values -= values.mean(dim=2, keepdim=True)
    units = torch.nn.functional.normalize(values, dim=2)
    return torch.bmm(rows_of(units, anchors), units.mT).amax(dim=1)


def drawn_pictures(num_images: int, side: int, seed: int = 0) -> Tensor:
    """Patches of 8 pixels with shaded, noisy and saturated regions, [B, side*side, 192] uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_images, 3, 3, 3, generator=generator) * 400 - 70
    smooth = torch.nn.functional.interpolate(coarse, size=(side * 8, side * 8), mode="bilinear")
    noisy = smooth + torch.randn(smooth.shape, generator=generator) * smooth.diff(dim=1)[:, :1]
    half = torch.where(torch.arange(side * 8) < side * 4, smooth, noisy * 0.1 + smooth)
    return patchify(half.clamp(0, 255).byte().permute(0, 2, 3, 1), 8)


def noise_of(patches: Tensor, seed: int = 1) -> Tensor:
    return torch.rand(patches.shape[:2], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_images", [1, 9])
@pytest.mark.parametrize("num_anchors", [1, 6, 7])
def test_the_short_form_is_the_definition(num_images: int, num_anchors: int) -> None:
    patches = drawn_pictures(num_images, 8)
    anchors = noise_of(patches).topk(num_anchors, dim=1).indices
    error = max_anchor_similarity(patches, anchors).double() - exact_similarity(patches, anchors)
    assert error.abs().max() < 5e-4
    assert error.abs().mean() < 5e-6
    by_definition = anchor_similarity(patches, anchors).amax(dim=2)
    assert (by_definition - exact_similarity(patches, anchors)).abs().max() < 1e-5


def test_flat_colours_are_finite_in_both_forms() -> None:
    patches = torch.zeros(3, 16, 192, dtype=torch.uint8)
    patches[1] = 255
    patches[2] = torch.tensor([123, 117, 104], dtype=torch.uint8).repeat(64)
    patches[2, 8:] = torch.tensor([225, 217, 210], dtype=torch.uint8).repeat(64)
    anchors = torch.tensor([[0, 9]] * 3)
    short = max_anchor_similarity(patches, anchors)
    assert short.isfinite().all()
    assert (short[:2] > 0.999).all(), "CLIP's normalisation gives each flat colour a direction"
    assert (short - anchor_similarity(patches, anchors).amax(dim=2)).abs().max() < 1e-3


@pytest.mark.skipif(not CLOTHING.exists(), reason="shared/data/clothing is not there")
def test_white_backgrounds_of_product_photos() -> None:
    with tarfile.open(CLOTHING) as shard:
        names = [name for name in shard.getnames() if name.endswith(".jpg")][:24]
        files = [shard.extractfile(name) for name in names]
        pictures = [Image.open(io.BytesIO(f.read())).convert("RGB") for f in files if f]
    pixels = [torch.frombuffer(bytearray(p.resize((224, 224)).tobytes()), dtype=torch.uint8)
              for p in pictures]  # fmt: skip
    patches = patchify(torch.stack(pixels).view(-1, 224, 224, 3), 16)
    noise = noise_of(patches)
    mask = ClusterMask()
    similarity = mask.similarity(patches, noise)
    assert similarity.isfinite().all()
    exact = exact_similarity(patches, mask.draw_anchors(patches, noise))
    assert (similarity - exact).abs().max() < 1e-3
    visible = mask.visible(patches, noise)
    assert int(visible.sum()) == round(visible.numel() / 2)
    assert int(visible.sum(dim=1).max()) <= 137


def test_topk_keeps_the_same_count_in_every_image() -> None:
    patches = drawn_pictures(5, 7)
    noise = noise_of(patches)
    mask = ClusterMask(mask_ratio=0.7, mode="topk")
    visible = mask.visible(patches, noise)
    assert (visible.sum(dim=1) == int(49 * 0.3)).all()
    similarity = mask.similarity(patches, noise)
    for row, kept in zip(similarity, visible, strict=True):
        assert row[kept].max() <= row[~kept].min()


def test_fill_keeps_a_fixed_count_unmasked_first() -> None:
    patches = drawn_pictures(40, 7)
    noise = noise_of(patches)
    mask = ClusterMask(0.1, min_mask_ratio=0.7, mode="fill", threshold=0.6)
    visible = mask.visible(patches, noise)
    clustered = mask.similarity(patches, noise) > 0.6
    assert (visible.sum(dim=1) == 14).all(), "floor(49 * 0.3)"
    few = (~clustered).sum(dim=1) <= 14
    assert few.any()
    assert (~few).any()
    assert visible[few][~clustered[few]].all()
    assert not visible[~few][clustered[~few]].any()
    back = (visible & clustered).gather(1, mask.draw_anchors(patches, noise))
    assert back[few].any(), "anchors may be let back in as well"


def test_groups_meet_the_budget_and_do_not_see_each_other() -> None:
    patches = drawn_pictures(10, 7)
    noise = noise_of(patches)
    mask = ClusterMask(mask_ratio=0.5, group_size=4)
    visible = mask.visible(patches, noise)
    assert [int(g.sum()) for g in visible.split(4)] == [98, 98, 49]
    alone = torch.cat([mask.visible(patches[i : i + 4], noise[i : i + 4]) for i in (0, 4, 8)])
    assert (alone == visible).all()


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.7])
def test_calibration_drops_the_wanted_share_of_other_batches(ratio: float) -> None:
    mask = ClusterMask(0.1, ratio, 0.2, mode="threshold")
    assert mask.needs_calibration
    with pytest.raises(ValueError, match="calibrate"):
        mask.visible(drawn_pictures(1, 7), torch.rand(1, 49))
    batches = [drawn_pictures(100, 7, seed=seed) for seed in range(4)]
    similarities = [mask.similarity(p, noise_of(p, seed)) for seed, p in enumerate(batches)]
    found = mask.calibrate(similarities)
    assert not found.needs_calibration
    assert found == mask.calibrate(iter(similarities))
    dropped = [
        1 - found.visible(p, noise_of(p, seed)).float().mean() for seed, p in enumerate(batches)
    ]
    assert abs(float(torch.stack(dropped).mean()) - ratio) < 0.003


def test_ranks_agree_on_the_threshold() -> None:
    mask = ClusterMask(0.1, mode="threshold")
    similarities = [torch.rand(20, 49) * scale for scale in (0.5, 1.0)]
    counts: list[Tensor] = []

    def note(counted: Tensor) -> Tensor:
        counts.append(counted.clone())
        return counted

    for similarity in similarities:
        mask.calibrate([similarity], note)
    ranks = [mask.calibrate([s], lambda _: counts[0] + counts[1]) for s in similarities]
    assert ranks[0] == ranks[1] == mask.calibrate(similarities)


def test_a_ratio_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="no threshold drops"):
        ClusterMask(0.1, 0.99, 0.3, min_visible=10, mode="threshold").calibrate([torch.rand(4, 49)])
    with pytest.raises(ValueError, match="at least one batch"):
        ClusterMask(mode="threshold").calibrate([])


def test_embedding_is_mixed_in_over_the_run() -> None:
    patches = drawn_pictures(3, 6)
    noise = noise_of(patches)
    weight = torch.randn(16, 192, generator=torch.Generator().manual_seed(0))
    embedding = PatchEmbedding(num_steps=10, first=0.0, last=0.5)
    mask = ClusterMask(anchor_ratio=0.1, embedding=embedding)
    pixels_only = ClusterMask(anchor_ratio=0.1).similarity(patches, noise)
    assert (mask.similarity(patches, noise) == pixels_only).all()
    embedding.update(weight, step=5)
    assert embedding.alpha == 0.25
    anchors = mask.draw_anchors(patches, noise)
    embedded = torch.nn.functional.normalize(normalise(patches) @ weight.T, dim=2)
    cosine = torch.bmm(embedded, rows_of(embedded, anchors).mT)
    wanted = (0.75 * anchor_similarity(patches, anchors) + 0.25 * cosine).amax(dim=2)
    assert (mask.similarity(patches, noise) - wanted).abs().max() < 1e-5
    weight.zero_()
    assert (mask.similarity(patches, noise) - wanted).abs().max() < 1e-5, "weights are copied"
    embedding.update(weight, step=99)
    assert embedding.alpha == 0.5
    similarity = mask.similarity(patches, noise)
    assert (similarity.gather(1, anchors) == 1).all(), "even where no embedding has a direction"
    with pytest.raises(ValueError, match="alpha"):
        PatchEmbedding(num_steps=10, last=2.0)


def test_kmeans_drops_whole_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 4, 192, generator=generator)
    which = torch.randint(0, 4, (4, 60), generator=generator)
    patches = kinds[torch.arange(4)[:, None], which]
    patches += 0.05 * torch.randn(patches.shape, generator=generator)
    mask = KMeansMask(mask_ratio=0.5, num_clusters=12)
    visible = mask(patches, generator=generator)
    assert (visible.sum(dim=1) == 30).all()
    noise = noise_of(patches)
    cluster, kept = mask.clusters(patches, noise).members, mask.visible(patches, noise)
    for clusters, flags, kind in zip(cluster, kept, which, strict=True):
        cut = sum(0 < float(flags[clusters == c].float().mean()) < 1 for c in clusters.unique())
        assert cut <= 1, "all but one cluster are kept or dropped whole"
        assert all(len(kind[clusters == c].unique()) == 1 for c in clusters.unique())


def test_impossible_combinations_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mode": "budget", "threshold": 0.5}, "has no threshold"),
        ({"mode": "topk", "group_size": 8}, "only mode budget"),
        ({"kind": "random", "threshold": 0.5}, "belongs to kind cluster"),
        ({"kind": "random", "mode": "topk"}, "belongs to kind cluster"),
        ({"kind": "cluster", "grid": (2, 3)}, "belongs to kind grid or block"),
        ({"kind": "cluster", "candidate_ratio": 0.2}, "belongs to kind edge_aware"),
        ({"kind": "edge_aware", "candidate_ratio": 2.0}, "candidate_ratio"),
        ({"threshold": 2.0}, "-1 to 1"),
        ({"kind": "kmeans", "num_clusters": 1}, "2 clusters"),
        ({"mode": "median"}, "unknown mode"),
        ({"kind": "some"}, "unknown mask kind"),
        ({"kind": "random", "threshold": 0.0}, "belongs to kind cluster"),
    ]
    for fields, words in cases:
        with pytest.raises(ValueError, match=words):
            MaskConfig(**fields)
    assert (
        MaskConfig(kind="grid", mask_ratio=0.75, grid=(4, 6)).build()(torch.zeros(1, 24, 3)).sum()
        == 6
    )
