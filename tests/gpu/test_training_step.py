"""A training step on CUDA never makes the host wait for the device, in any precision."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from model import build_clip, clip_loss
from model.execution import configure
from pipeline import PackedBatch
from training.accumulation import Encoded
from training.config import OptimConfig, TrainConfig
from training.optim import build_optimizer
from training.step import train_step
from training.timeline import Timeline

Precision = Literal["float32", "bfloat16", "pure_bfloat16"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def batch(captions: list[int]) -> PackedBatch:
    lengths = [20, 44, 32]
    return PackedBatch(
        patches=torch.randint(0, 256, (sum(lengths), 192), dtype=torch.uint8),
        positions=torch.cat([torch.randperm(64)[:n] for n in lengths]).int(),
        image_offsets=torch.tensor([0, *lengths]).cumsum(0).int(),
        tokens=torch.randint(1, 1000, (sum(captions),), dtype=torch.int32),
        text_offsets=torch.tensor([0, *captions]).cumsum(0).int(),
        sample_ids=torch.arange(3),
    ).to("cuda")


def loss_of(features: Encoded) -> Tensor:
    return clip_loss(features.images, features.texts, features.scale)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "pure_bfloat16"])
def test_a_step_waits_for_nothing_and_learns(precision: Precision, compiled: bool) -> None:
    torch.manual_seed(0)
    config = TrainConfig(
        recipe="",
        run_dir="",
        model="tessera-demo",
        total_samples=30,
        batch_size=3,
        precision=precision,
        optim=OptimConfig(learning_rate=1e-3, max_grad_norm=1.0),
    )
    clip = build_clip(config.model).cuda()
    dtype = torch.bfloat16 if precision == "pure_bfloat16" else None
    configure(clip, dtype=dtype, compile_blocks=compiled)
    optimizer = build_optimizer(clip, config.optim)
    batches = [batch(captions) for captions in ([5, 9, 20], [9, 20, 5], [14, 9, 12])]

    def step(number: int) -> Tensor:
        parts = [batches[number % 3]]
        return train_step(clip, loss_of, optimizer, parts, config, Timeline())[0]

    first = [step(number) for number in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(number) for number in range(30)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()
    assert torch.stack(losses[-3:]).mean() < 0.5 * torch.stack(first).mean()
