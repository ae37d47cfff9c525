"""Shapes and devices alone, on a CUDA device that is not there: what would stop the host raises."""

from typing import get_args

import pytest
import torch

from tessera.model.losses import ContrastiveLoss, LossConfig, build_loss
from tessera.model.losses.config import LossKind, SameCaption
from tests.imagined_cuda import imagined_cuda


def imagine_on_cuda(loss: ContrastiveLoss) -> None:
    """`.to("cuda")` needs a GPU; new tensors in a FakeTensorMode do not."""
    for module in loss.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            fake = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
            setattr(module, name, fake)


@pytest.mark.parametrize("same_caption", ["negative", "ignore"])
@pytest.mark.parametrize("tile_size", [0, 2])
@pytest.mark.parametrize("kind", get_args(LossKind))
def test_the_loss_never_waits_for_the_device_nor_mixes_devices(
    kind: LossKind, tile_size: int, same_caption: SameCaption
) -> None:
    with imagined_cuda(), torch.no_grad():
        config = LossConfig(kind=kind, tile_size=tile_size, same_caption=same_caption)
        loss = build_loss(config, num_samples=100, steps_per_pass=10)
        imagine_on_cuda(loss)
        with torch.device("cuda"):
            features, scalar = torch.empty(6, 16), torch.empty(())
            ids = torch.empty(6, dtype=torch.int64)
        for step in range(2):
            value = loss(
                features,
                features,
                scalar,
                logit_bias=scalar,
                sample_ids=ids,
                captions=ids,
                step=step,
            )
            assert value.device.type == "cuda"
