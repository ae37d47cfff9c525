"""A training step on CUDA never makes the host wait for the device, in any precision."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from tessera.model import build_clip, clip_loss
from tessera.model.execution import configure
from tessera.model.losses import LossConfig, build_loss
from tessera.model.losses.config import LossKind
from tessera.pipeline import PackedBatch
from tessera.training.accumulation import Encoded, split
from tessera.training.config import OptimConfig, TrainConfig
from tessera.training.opening import architecture_of
from tessera.training.optim import build_optimizer
from tessera.training.precision import TYPES, Precision
from tessera.training.step import train_step
from tessera.training.timeline import Timeline

RUN = TrainConfig(
    recipe="",
    run_dir="",
    model="tessera-demo",
    total_samples=40,
    batch_size=4,
    optim=OptimConfig(learning_rate=1e-3, max_grad_norm=1.0),
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def batch(captions: list[int]) -> PackedBatch:
    lengths = [20, 44, 32, 32]
    return PackedBatch(
        patches=torch.randint(0, 256, (sum(lengths), 192), dtype=torch.uint8),
        positions=torch.cat([torch.randperm(64)[:n] for n in lengths]).int(),
        image_offsets=torch.tensor([0, *lengths]).cumsum(0).int(),
        tokens=torch.randint(1, 1000, (sum(captions),), dtype=torch.int32),
        text_offsets=torch.tensor([0, *captions]).cumsum(0).int(),
        sample_ids=torch.arange(4),
    ).to("cuda")


def loss_of(features: Encoded) -> Tensor:
    return clip_loss(features.images, features.texts, features.scale)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "pure_bfloat16"])
def test_a_step_waits_for_nothing_and_learns(precision: Precision, compiled: bool) -> None:
    torch.manual_seed(0)
    clip = build_clip(RUN.model).cuda()
    compute, residual = TYPES[precision]
    configure(
        clip,
        compute_dtype=compute,
        residual_dtype=residual,
        compile_blocks=compiled,
        max_patches=44,
    )
    optimizer = build_optimizer(clip, RUN.optim)
    batches = [batch(captions) for captions in ([5, 9, 20, 7], [9, 20, 5, 7], [14, 9, 12, 3])]

    def step(number: int) -> Tensor:
        parts = [batches[number % 3]]
        return train_step(clip, loss_of, optimizer, parts, RUN, Timeline())[0]

    first = [step(number) for number in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(number) for number in range(30)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()
    assert torch.stack(losses[-3:]).mean() < 0.5 * torch.stack(first).mean()


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("kind", get_args(LossKind))
def test_no_loss_waits_whole_or_in_chunks(kind: LossKind, chunks: int) -> None:
    torch.manual_seed(0)
    run = replace(RUN, loss=LossConfig(kind=kind))
    clip = build_clip(architecture_of(run)).cuda()
    configure(clip, compute_dtype=torch.bfloat16, residual_dtype=torch.float32)
    loss = build_loss(run.loss, num_samples=4, steps_per_pass=1).cuda()
    clip.logit_scale.requires_grad_(not loss.owns_temperature)
    optimizer = build_optimizer(clip, run.optim)
    whole = batch([5, 9, 20, 7])

    def step(number: int) -> Tensor:
        def of(features: Encoded) -> Tensor:
            return loss(
                features.images,
                features.texts,
                features.scale,
                logit_bias=features.bias,
                sample_ids=whole.sample_ids,
                step=number,
            )

        parts = split(whole, chunks)
        return train_step(clip, of, optimizer, parts, run, Timeline())[0]

    values = [step(number) for number in range(2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        values += [step(number) for number in range(2, 5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(values).isfinite().all()
