"""One global batch, however many ranks share it: bit for bit the same pairs, crops and masks."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.pipeline import Loader, LoaderConfig, PackedBatch, open_loader
from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.crops import CropConfig
from tessera.pipeline.masking import ClusterMask, MaskConfig

STEPS = 8
CONFIG = LoaderConfig(
    batch_size=16,
    image_size=64,
    patch_size=8,
    context_length=24,
    crop=CropConfig(scale=(0.4, 1.0)),
    mask=MaskConfig(kind="cluster"),
    augment=AugmentConfig(flip=0.5),
)


def served(index_dir: Path, config: LoaderConfig) -> list[PackedBatch]:
    with open_loader(index_dir, config) as loader:
        return [next(loader) for _ in range(STEPS)]


def threshold(loader: Loader) -> float:
    assert isinstance(loader.mask, ClusterMask)
    assert loader.mask.threshold is not None
    return loader.mask.threshold


def joined(parts: tuple[PackedBatch, ...]) -> PackedBatch:
    """The batches of all ranks as one."""

    def offsets(name: str) -> torch.Tensor:
        lengths = torch.cat([getattr(part, name).diff() for part in parts])
        return torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()

    def rows(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    names = [f.name for f in fields(PackedBatch) if getattr(parts[0], f.name) is not None]
    joined: dict[str, Any] = {n: offsets(n) if n.endswith("offsets") else rows(n) for n in names}
    return PackedBatch(**joined)


@pytest.mark.parametrize(
    "changed",
    [
        replace(CONFIG),
        replace(CONFIG, order="window", window_shards=2),
        replace(CONFIG, mask=MaskConfig(mode="threshold", min_mask_ratio=0.2)),
        replace(CONFIG, mask=MaskConfig(mask_ratio=0.4, group_size=4)),
        replace(CONFIG, mask=MaskConfig(kind="random")),
        replace(CONFIG, text_reduction="random", context_length=6),
        # A batch over the end of a pass, in parts that are no power of two.
        replace(CONFIG, batch_size=60, mask=MaskConfig(group_size=3)),
    ],
    ids=["budget", "window", "threshold", "groups", "random", "short texts", "uneven"],
)
def test_ranks_share_the_batches_of_one(coloured_index: Path, changed: LoaderConfig) -> None:
    alone = served(coloured_index, changed)
    for world_size in (2, 4):
        by_rank = [
            served(coloured_index, replace(changed, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        for whole, *parts in zip(alone, *by_rank, strict=True):
            assert all(part.num_samples == whole.num_samples // world_size for part in parts)
            together = joined(tuple(parts))
            for field in fields(PackedBatch):
                ours, theirs = getattr(whole, field.name), getattr(together, field.name)
                if ours is None:  # no embeddings are read
                    assert theirs is None
                    continue
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs), field.name


def test_every_batch_of_a_rank_has_the_same_number_of_patches(coloured_index: Path) -> None:
    """Static shapes: the budget is exact in each group, so it is in each rank."""
    for rank in range(2):
        config = replace(CONFIG, batch_size=32, rank=rank, world_size=2)
        assert {len(batch.patches) for batch in served(coloured_index, config)} == {16 * 64 // 2}


def test_a_threshold_is_found_from_good_samples_only_and_agreed(
    coloured_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that read its own share only would find another one: the shares differ."""
    config = replace(CONFIG, mask=MaskConfig(mode="threshold", min_mask_ratio=0.2))
    found = []
    for rank, world_size in ((0, 1), (0, 4), (3, 4)):
        with open_loader(
            coloured_index, replace(config, rank=rank, world_size=world_size)
        ) as loader:
            found.append(threshold(loader))
    assert found[0] == found[1] == found[2]
    monkeypatch.setattr("tessera.pipeline.plan._CALIBRATION_SAMPLES", 4)
    with open_loader(coloured_index, config) as loader:
        assert threshold(loader) != found[0], "the check above could not have failed"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 18, "world_size": 4}, "take 16"),
        ({"batch_size": 2, "world_size": 4}, "take 4"),
        ({"rank": 2, "world_size": 2}, r"rank is 0 \.\. world_size - 1"),
        ({"rank": -1}, "rank is 0"),
        ({"batch_size": 128, "world_size": 32}, "take mask.group_size 4"),
        ({"batch_size": 24, "world_size": 2, "mask": MaskConfig(group_size=8)}, "group_size 4"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **wrong)


def test_the_open_group_size_depends_on_the_global_batch_alone() -> None:
    sizes = {4: 1, 16: 2, 60: 6, 96: 12, 100: 10, 128: 16, 1000: 10, 4096: 16, 32768: 16}
    assert {size: replace(CONFIG, batch_size=size).group_size for size in sizes} == sizes
    for world_size in (1, 2, 4, 8):
        assert replace(CONFIG, batch_size=4096, world_size=world_size).group_size == 16
    for mask in (MaskConfig(kind="random"), MaskConfig(mode="topk"), MaskConfig(mode="fill")):
        assert replace(CONFIG, mask=mask).group_size == 0
