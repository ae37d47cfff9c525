"""What all strategies have in common: any grid, groups, counts known beforehand, clusters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tessera.pipeline.masking import (
    BlockMask,
    ClusterMask,
    EdgeAwareMask,
    GridMask,
    KMeansMask,
    MaskConfig,
    MaskStrategy,
    NoMask,
    PatchEmbedding,
    RandomMask,
    anchor_similarity,
    pack_visible,
)
from tessera.pipeline.masking.embedding import rows_of
from tessera.pipeline.patches import normalise

GRIDS = [((7, 7), 14), ((6, 4), 16), ((3, 10), 7), ((1, 8), 5), ((5, 5), 1)]


def strategies(grid: tuple[int, int]) -> dict[str, MaskStrategy]:
    return {
        "none": NoMask(),
        "random": RandomMask(0.6),
        "grid, half": GridMask(0.5, grid=grid),
        "grid, quarter": GridMask(0.75, grid=grid),
        "block": BlockMask(0.7, grid=grid),
        "budget": ClusterMask(),
        "groups": ClusterMask(mask_ratio=0.7, group_size=4),
        "topk": ClusterMask(0.1, mode="topk"),
        "fill": ClusterMask(0.1, mode="fill"),
        "threshold": ClusterMask(0.1, threshold=0.4),
        "kmeans": KMeansMask(0.6),
        "edge_aware": EdgeAwareMask(0.1, group_size=3, grid=grid),
    }


NAMES = list(strategies((2, 2)))


@pytest.mark.parametrize(("grid", "side"), GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_any_grid_and_patch_size(draw_pictures, name: str, grid, side: int) -> None:
    patches = draw_pictures(9, grid, side)
    mask = strategies(grid)[name]
    noise = torch.rand(patches.shape[:2], generator=torch.Generator().manual_seed(0))
    visible = mask.visible(patches, noise)
    assert visible.shape == noise.shape
    assert visible.dtype == torch.bool
    known = mask.num_visible(9, noise.shape[1])
    if known is None:
        assert name in ("grid, half", "grid, quarter", "threshold")
    else:
        assert int(visible.sum()) == known
    assert (mask.visible(patches.clone(), noise) == visible).all()


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_known_where_grids_divide(name: str) -> None:
    known = strategies((4, 6))[name].num_visible(9, 24)
    assert (known is None) == (name == "threshold")


@pytest.mark.parametrize(
    "config",
    [
        MaskConfig(group_size=16),
        MaskConfig(kind="edge_aware", group_size=16),
        MaskConfig(mode="topk"),
        MaskConfig(mode="fill"),
        MaskConfig(threshold=0.3),
        MaskConfig(kind="edge_aware", threshold=0.3),
        MaskConfig(kind="kmeans"),
        MaskConfig(kind="random"),
        MaskConfig(kind="grid", mask_ratio=0.75),
        MaskConfig(kind="block"),
    ],
    ids=str,
)
def test_one_batch_of_64_is_four_of_16(draw_pictures, config: MaskConfig) -> None:
    patches = draw_pictures(64, (8, 8), 4)
    noise = torch.rand(64, 64, generator=torch.Generator().manual_seed(1))
    mask = config.build()
    together = mask.visible(patches, noise)
    parts = zip(patches.split(16), noise.split(16), strict=True)
    assert (together == torch.cat([mask.visible(*part) for part in parts])).all()
    if config.group_size:
        assert [int(group.sum()) for group in together.split(16)] == [512] * 4
        whole = replace(config, group_size=0).build().visible(patches, noise)
        assert (whole != together).any(), "without groups the budget is that of all 64"


@pytest.mark.parametrize("known", [True, False])
def test_packing_gathers_what_is_visible(draw_pictures, known: bool) -> None:
    patches = draw_pictures(5, (3, 4), 6)
    noise = torch.rand(5, 12, generator=torch.Generator().manual_seed(2))
    mask = ClusterMask()
    visible = mask.visible(patches, noise)
    count = mask.num_visible(5, 12) if known else None
    packed, places, offsets = pack_visible(patches, visible, count)
    row = 0
    for image in range(5):
        assert int(offsets[image]) == row
        for place in range(12):
            if visible[image, place]:
                assert int(places[row]) == place
                assert (packed[row] == patches[image, place]).all()
                row += 1
    assert int(offsets[5]) == row == len(packed) == len(places) == 30
    assert places.dtype == offsets.dtype == torch.int32


@pytest.mark.parametrize("kind", ["cluster", "edge_aware", "kmeans"])
def test_clusters_are_those_that_are_dropped(draw_pictures, kind: str) -> None:
    patches = draw_pictures(6, (7, 7), 8)
    noise = torch.rand(6, 49, generator=torch.Generator().manual_seed(3))
    mask = MaskConfig(kind=kind).build()  # pyright: ignore[reportArgumentType]
    clusters = mask.clusters(patches, noise)
    assert clusters is not None
    num_clusters = clusters.seeds.shape[1]
    assert clusters.members.shape == (6, 49)
    assert int(clusters.members.min()) >= 0
    assert int(clusters.members.max()) < num_clusters
    if kind == "kmeans":
        return
    own = clusters.members.gather(1, clusters.seeds)
    assert (own == torch.arange(num_clusters)).all(), "an anchor is in its own cluster"
    assert not mask.visible(patches, noise).gather(1, clusters.seeds).any()


def test_clusters_of_a_mask_that_follows_the_model(draw_pictures) -> None:
    patches = draw_pictures(4, (6, 6), 8)
    noise = torch.rand(4, 36, generator=torch.Generator().manual_seed(4))
    embedding = PatchEmbedding(num_steps=1, last=1.0)
    mask = ClusterMask(0.1, embedding=embedding)
    by_pixels = mask.clusters(patches, noise)
    nearest = anchor_similarity(patches, by_pixels.seeds).argmax(dim=2)
    assert (by_pixels.members == nearest).all()
    weight = torch.randn(6, 192, generator=torch.Generator().manual_seed(5))
    embedding.update(weight, step=1)
    embedded = torch.nn.functional.normalize(normalise(patches) @ weight.T, dim=2)
    nearest = torch.bmm(embedded, rows_of(embedded, by_pixels.seeds).mT).argmax(dim=2)
    assert (mask.clusters(patches, noise).members == nearest).all()
    assert (nearest != by_pixels.members).any()


def test_masks_that_compare_nothing_have_no_clusters() -> None:
    patches, noise = torch.zeros(1, 16, 3), torch.rand(1, 16)
    for mask in (NoMask(), RandomMask(), GridMask(), BlockMask()):
        assert mask.clusters(patches, noise) is None
