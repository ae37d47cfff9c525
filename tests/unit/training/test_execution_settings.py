"""Settings of a run that change how its towers compute."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.masking import MaskConfig
from training.config import TrainConfig

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


def test_compiled_blocks_refuse_unequal_chunks() -> None:
    with pytest.raises(ValueError, match="accumulation 1"):
        replace(RUN, mask=CLUSTER, accumulation=2)
    assert replace(RUN, mask=MaskConfig(kind="none"), accumulation=2).compile
