"""What is shown of a picture when it is evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tessera.evaluation.views import ViewConfig
from tessera.pipeline.masking import MaskConfig

PATCHES = torch.randn(6, 64, 12, generator=torch.Generator().manual_seed(0))
IDS = np.array([3, 5, 8, 13, 21, 34])


def test_full_shows_everything() -> None:
    (visible,) = ViewConfig().visible(PATCHES, IDS)
    assert visible.all()


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 2), (0.75, 4), (2 / 3, 3)])
def test_complementary_views_are_disjoint_and_cover_the_picture(ratio: float, count: int) -> None:
    config = ViewConfig(
        views="complementary", mask=MaskConfig(kind="random", mask_ratio=ratio), seed=1
    )
    views = torch.stack(config.visible(PATCHES, IDS))
    assert len(views) == config.num_views == count
    assert (views.sum(dim=0) == 1).all()
    assert (views.sum(dim=2) - 64 / count).abs().max() < 1
    assert not (views[0, 0] == views[0, 1]).all(), "every picture is dealt its own"


@pytest.mark.parametrize("kind", ["random", "cluster", "block"])
def test_masks_do_not_depend_on_the_batch(kind: Any) -> None:
    config = ViewConfig(views="masked", mask=MaskConfig(kind=kind))
    (whole,) = config.visible(PATCHES, IDS)
    (part,) = config.visible(PATCHES[2:4], IDS[2:4])
    assert (whole[2:4] == part).all()
    assert 0 < whole.float().mean() < 1


def test_the_seed_changes_the_masks() -> None:
    mask = MaskConfig(kind="random")
    first, second = (ViewConfig(views="masked", mask=mask, seed=s) for s in (0, 1))
    assert not torch.equal(first.visible(PATCHES, IDS)[0], second.visible(PATCHES, IDS)[0])


def test_views_and_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        ViewConfig(views="masked")
    with pytest.raises(ValueError, match="do not go together"):
        ViewConfig(mask=MaskConfig(kind="random"))
    with pytest.raises(ValueError, match=r"mask.kind random"):
        ViewConfig(views="complementary", mask=MaskConfig(kind="cluster"))
    with pytest.raises(ValueError, match=r"which is 2\.50 for 0\.6"):
        ViewConfig(views="complementary", mask=MaskConfig(kind="random", mask_ratio=0.6))
    near = MaskConfig(kind="random", mask_ratio=0.667)
    assert ViewConfig(views="complementary", mask=near).num_views == 3
    with pytest.raises(ValueError, match=r"mask.threshold"):
        ViewConfig(views="masked", mask=MaskConfig(kind="cluster", mode="threshold"))
    with pytest.raises(ValueError, match="compare pixels"):
        ViewConfig(views="masked", mask=MaskConfig(kind="cluster", embedding_last=0.5))
