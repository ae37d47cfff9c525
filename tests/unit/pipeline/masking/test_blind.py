"""Masks that do not look at the picture keep the patches that they should."""

import pytest
import torch

from tessera.pipeline.masking import BlockMask, GridMask, MaskConfig, NoMask, RandomMask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_mask_shows_everything() -> None:
    assert NoMask()(torch.zeros(3, 9, 12)).all()


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 196), (0.5, 98), (0.75, 49), (0.9, 19)])
def test_random_keeps_flips_count_in_every_image(ratio: float, kept: int) -> None:
    visible = RandomMask(ratio)(torch.zeros(50, 196, 3), generator=seeded())
    assert (visible.sum(dim=1) == kept).all()
    assert ratio == 0 or (visible[0] != visible[1]).any()


def test_random_is_uniform_over_places() -> None:
    share = RandomMask(0.5)(torch.zeros(4000, 16, 3), generator=seeded()).float().mean(dim=0)
    assert (share - 0.5).abs().max() < 0.05


def test_grid_keeps_one_of_every_window() -> None:
    visible = GridMask(0.75)(torch.zeros(40, 64, 3), generator=seeded()).view(40, 8, 8)
    windows = visible.view(40, 4, 2, 4, 2).sum(dim=(2, 4))
    assert (windows == 1).all()
    assert len({tuple(v.flatten().tolist()) for v in visible}) == 4
    fixed = GridMask(0.75, random_offset=False)(torch.zeros(2, 64, 3)).view(2, 8, 8)
    assert fixed[:, ::2, ::2].all()


def test_grid_at_half_is_a_checkerboard() -> None:
    visible = GridMask(0.5, grid=(4, 6))(torch.zeros(8, 24, 3), generator=seeded())
    board = visible.view(8, 4, 6)
    assert (board[:, :, 1:] != board[:, :, :-1]).all()
    assert (board[:, 1:] != board[:, :-1]).all()


def test_block_keeps_one_rectangle() -> None:
    visible = BlockMask(0.75)(torch.zeros(600, 196, 3), generator=seeded()).view(600, 14, 14)
    assert (visible.sum(dim=(1, 2)) == 49).all()
    for image in visible:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        assert len(rows) == int(rows.max() - rows.min()) + 1 == 7
        assert len(columns) == int(columns.max() - columns.min()) + 1 == 7
    assert visible.any(dim=0).all(), "every place is kept in some image"
    centred = BlockMask(0.75, centred=True)(torch.zeros(1, 64, 3)).view(8, 8)
    assert centred[2:6, 2:6].all()


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="pass grid"):
        GridMask()(torch.zeros(1, 24, 3))
    with pytest.raises(ValueError, match="grid mask drops"):
        GridMask(0.6)


@pytest.mark.parametrize(
    "kind", ["none", "random", "grid", "block", "cluster", "edge_aware", "kmeans"]
)
def test_config_builds_every_kind(kind: str) -> None:
    ratio = 0.75 if kind in ("grid", "block") else 0.5
    strategy = MaskConfig(kind=kind, mask_ratio=ratio).build()  # pyright: ignore[reportArgumentType]
    visible = strategy(torch.rand(4, 64, 12), generator=seeded())
    assert visible.shape == (4, 64)
    assert visible.dtype == torch.bool
    assert visible.float().mean() == {"none": 1, "grid": 0.25, "block": 0.25}.get(kind, 0.5)


def test_the_same_seed_gives_the_same_mask() -> None:
    patches = torch.rand(4, 64, 12)
    for config in (MaskConfig(kind="random"), MaskConfig(kind="cluster")):
        mask = config.build()
        assert (mask(patches, generator=seeded(1)) == mask(patches, generator=seeded(1))).all()
        assert (mask(patches, generator=seeded(1)) != mask(patches, generator=seeded(2))).any()
