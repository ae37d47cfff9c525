"""Settings of a run that change how its towers compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tessera.pipeline import PackedBatch
from tessera.pipeline.masking import MaskConfig, pack_visible
from tessera.training.accumulation import equal_chunks, split
from tessera.training.config import TrainConfig

RUN = TrainConfig(
    recipe="demo", run_dir="", model="tessera-demo", total_samples=64, batch_size=8, compile=True
)
CLUSTER = MaskConfig(kind="cluster", mask_ratio=0.5)


@pytest.mark.parametrize("mask", [CLUSTER, MaskConfig(kind="random"), MaskConfig(kind="none")])
def test_compiled_blocks_take_masks_with_a_fixed_total(mask: MaskConfig) -> None:
    assert replace(RUN, mask=mask).compile


@pytest.mark.parametrize(
    "mask", [replace(CLUSTER, threshold=0.5), replace(CLUSTER, mode="threshold")]
)
def test_compiled_blocks_refuse_totals_that_change(mask: MaskConfig) -> None:
    with pytest.raises(ValueError, match=r"mask\.mode budget"):
        replace(RUN, mask=mask)
    assert not replace(RUN, mask=mask, compile=False).compile


@pytest.mark.parametrize(
    "mask",
    [
        replace(CLUSTER, group_size=4),
        replace(CLUSTER, mode="topk"),
        MaskConfig(kind="random"),
        MaskConfig(kind="grid", mask_ratio=0.75),
        MaskConfig(kind="block"),
        MaskConfig(kind="none"),
    ],
    ids=lambda mask: f"{mask.kind}-{mask.mode}",
)
def test_chunks_of_whole_groups_have_equal_patches_and_need_no_offsets(mask: MaskConfig) -> None:
    """So blocks compiled for one chunk serve all, and a batch on a GPU is cut without a wait."""
    assert replace(RUN, mask=mask, accumulation=2).compile
    strategy = mask.build()
    assert equal_chunks(strategy, 64, 4, mask.group_size)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 64, 12)).byte()
    patches, places, offsets = pack_visible(images, strategy(images))
    captions = torch.tensor([3, 5, 2, 7, 4, 4, 9, 2])
    batch = PackedBatch(
        patches=patches,
        positions=places,
        image_offsets=offsets,
        tokens=torch.arange(int(captions.sum())).int(),
        text_offsets=torch.cat([torch.zeros(1), captions.cumsum(0)]).int(),
        sample_ids=torch.arange(8),
    )
    by_offsets, by_count = split(batch, 2), split(batch, 2, equal_patches=True)
    for theirs, ours in zip(by_offsets, by_count, strict=True):
        ours.check()
        assert len(ours.patches) == len(patches) // 2
        for name, value in theirs.tensors().items():
            assert torch.equal(ours.tensors()[name], value), name


@pytest.mark.parametrize("group_size", [3, 8])
def test_chunks_that_cut_a_group_are_not_equal(group_size: int) -> None:
    assert not equal_chunks(CLUSTER.build(), 64, 4, group_size)
    threshold = replace(CLUSTER, threshold=0.5)
    assert not equal_chunks(threshold.build(), 64, 4, 0)
    odd = MaskConfig(kind="grid", mask_ratio=0.75)
    assert not equal_chunks(odd.build(), 49, 4, 0), "windows are cut at the border"


@pytest.mark.parametrize("num_patches", [64, 49, 196])
@pytest.mark.parametrize("group_size", [0, 1, 3])
def test_no_image_keeps_more_than_the_mask_says(num_patches: int, group_size: int) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, num_patches, 12)).byte()
    for settings in (
        {"group_size": group_size},
        {"group_size": group_size, "min_mask_ratio": 0.5},
        {"mode": "topk"},
        {"mode": "fill"},
        {"threshold": 0.9, "min_mask_ratio": 0.1},
    ):
        mask = MaskConfig(kind="cluster", **settings).build()  # pyright: ignore[reportArgumentType]
        assert mask(images).sum(dim=1).max() <= mask.most_visible(num_patches)
    assert MaskConfig().build().most_visible(196) == 137
    for kind in ("random", "block", "kmeans", "none"):
        mask = MaskConfig(kind=kind).build()  # pyright: ignore[reportArgumentType]
        assert mask(images).sum(dim=1).max() <= mask.most_visible(num_patches)
