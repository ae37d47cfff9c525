"""What is spread over ranks: nothing is compiled ahead, and blocks travel in the run's types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from tessera.model import Clip, build_clip, clip_loss
from tessera.model.execution import configure
from tessera.training.distributed import Ranks
from tessera.training.parallel import parallelise, second_model, whole
from tests.unit.model.test_types import batch

CPU = torch.device("cpu")
BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture
def two_ranks(tmp_path: Path) -> Iterator[Ranks]:
    """A group of this process alone, which is told that it is one of two."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Ranks(rank=0, world_size=2)
    dist.destroy_process_group()


def demo() -> Clip:
    torch.manual_seed(0)
    return build_clip("tessera-demo")


def test_nothing_is_compiled_before_the_first_batch(two_ranks: Ranks) -> None:
    torch.compiler.reset()
    counters.clear()
    clip = demo()
    configure(clip, compute_dtype=BF16, residual_dtype=F32, compile_blocks=True, backend="eager")
    seen = set()
    for block in clip.image.blocks:
        block.register_forward_hook(lambda _b, ins, _out: seen.add(ins[0].dtype))
    parallelise(clip, two_ranks, CPU, "ddp")
    assert seen == {F32}, "buckets were ordered by a pass"
    assert not counters["stats"]["unique_graphs"]
    torch.compiler.reset()


def test_the_pass_that_orders_buckets_takes_any_bound_on_patches(two_ranks: Ranks) -> None:
    clip = demo()
    configure(clip, max_patches=3)
    parallelise(clip, two_ranks, CPU, "ddp")


def test_sharded_blocks_travel_in_bfloat16_and_compute_the_same(
    two_ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tessera.training.parallel.init_device_mesh", lambda kind, _: init_device_mesh(kind, (1,))
    )
    features, gradients, travelled, streams = [], [], [], []
    for spread in (False, True):
        clip = demo()
        configure(clip, compute_dtype=BF16, residual_dtype=F32)
        if spread:
            parallelise(clip, two_ranks, CPU, "fsdp")
            for block in clip.image.blocks:
                block.get_submodule("attn.qkv").register_forward_hook(
                    lambda module, _ins, _out: travelled.append(module.weight.dtype)
                )
                block.register_forward_hook(lambda _b, ins, _out: streams.append(ins[0].dtype))
        images, texts, scale = clip(*batch())
        clip_loss(images, texts, whole(scale) if spread else scale).backward()
        features.append(torch.cat([images, texts]).detach())
        gradients.append(
            [whole(p.grad) for p in clip.parameters() if p.grad is not None and p.ndim]
        )
    assert set(travelled) == {BF16}
    assert set(streams) == {F32}
    assert torch.equal(*features)
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == F32
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-2)


def test_a_second_model_is_spread_alike_and_not_trained(two_ranks: Ranks) -> None:
    clip = demo()
    state = torch.random.get_rng_state()
    second = second_model(clip, two_ranks, CPU, "ddp")
    assert torch.equal(torch.random.get_rng_state(), state), "the run's draws are as before"
    assert not any(p.requires_grad for p in second.parameters())
    names = [name for name, _ in clip.named_parameters()]
    assert [name for name, _ in second.named_parameters()] == names
