"""A step on an imagined CUDA device: with every loss and in chunks, the host never waits.

Autograd needs a real device; tests/gpu/test_training_step.py has the backward pass.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tessera.model import build_clip
from tessera.model.execution import configure
from tessera.model.losses import LossConfig, build_loss
from tessera.model.losses.config import LossKind
from tessera.pipeline import PackedBatch
from tessera.training.accumulation import encode, encode_in_chunks, split
from tessera.training.config import TrainConfig
from tessera.training.opening import architecture_of
from tests.imagined_cuda import HostWaitError, imagined_cuda

PAIRS, PATCHES, TOKENS = 4, 80, 40


def config(kind: LossKind, chunks: int) -> TrainConfig:
    return TrainConfig(
        recipe="",
        run_dir="",
        model="tessera-demo",
        total_samples=8,
        batch_size=PAIRS,
        accumulation=chunks,
        loss=LossConfig(kind=kind),
    )


def on_device() -> PackedBatch:
    with torch.device("cuda"):
        return PackedBatch(
            patches=torch.empty(PATCHES, 192, dtype=torch.uint8),
            positions=torch.empty(PATCHES, dtype=torch.int32),
            image_offsets=torch.empty(PAIRS + 1, dtype=torch.int32),
            tokens=torch.empty(TOKENS, dtype=torch.int32),
            text_offsets=torch.empty(PAIRS + 1, dtype=torch.int32),
            sample_ids=torch.empty(PAIRS, dtype=torch.int64),
        )


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("kind", get_args(LossKind))
def test_no_loss_makes_the_host_wait(kind: LossKind, chunks: int) -> None:
    run, mode = config(kind, chunks), FakeTensorMode()
    with mode:
        with torch.device("cuda"):
            clip = build_clip(architecture_of(run))
        configure(clip, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
        loss = build_loss(run.loss, num_samples=100, steps_per_pass=10)
        for module in loss.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                fake = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
                setattr(module, name, fake)
        clip.logit_scale.requires_grad_(not loss.owns_temperature)
        batch = on_device()
    # What a loader hands over: the offsets of the captions are in host memory as well.
    text_offsets = torch.arange(0, TOKENS + 1, TOKENS // PAIRS, dtype=torch.int32)
    tensors: dict[str, Any] = batch.tensors()
    batch = PackedBatch(**tensors, host_text_offsets=text_offsets)
    parts = split(batch, chunks, equal_patches=True)

    with imagined_cuda(mode), torch.no_grad():
        features = encode(clip, batch) if chunks == 1 else encode_in_chunks(clip, parts)
        value = loss(
            features.images,
            features.texts,
            features.scale,
            logit_bias=features.bias,
            sample_ids=batch.sample_ids,
            step=0,
        )
    assert [len(part.patches) for part in parts] == [PATCHES // chunks] * chunks
    assert value.device.type == "cuda"


def test_the_imagined_device_notices_a_wait() -> None:
    with imagined_cuda():
        values = torch.empty(3, device="cuda")
        with pytest.raises(HostWaitError):
            values.new_tensor([1.0])
        with pytest.raises(HostWaitError):
            values.cpu()
        with pytest.raises(RuntimeError, match="_local_scalar_dense"):
            values.sum().item()
