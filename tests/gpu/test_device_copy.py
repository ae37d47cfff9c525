"""Batches that are copied ahead arrive whole, however busy the device and the allocators are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tessera.pipeline import LoaderConfig, PackedBatch, open_loader
from tessera.pipeline.device_copy import DeviceCopier
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.prefetch import Prefetched

pytestmark = pytest.mark.gpu


def numbered(number: int, num_patches: int) -> PackedBatch:
    """A batch in which every value depends on its number."""
    draw = torch.Generator().manual_seed(number)

    def values(count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.randint(0, 255, (count,), generator=draw).to(dtype)

    return PackedBatch(
        patches=values(num_patches * 768, torch.uint8).view(-1, 768),
        positions=values(num_patches),
        image_offsets=values(65),
        tokens=values(1000 + number % 7),
        text_offsets=values(65),
        sample_ids=values(64, torch.int64),
    )


def equal(ours: PackedBatch, theirs: PackedBatch) -> bool:
    found, wanted = ours.tensors(), theirs.tensors()
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name].cpu(), value) for name, value in wanted.items()
    )


def test_no_buffer_is_used_again_too_early(device: torch.device) -> None:
    """A producer far ahead, a consumer whose stream lags behind, and freed memory all the time."""
    copier, side = DeviceCopier(device), 4096 if device.type == "cuda" else 16

    def sent() -> Iterator:
        for number in range(200):
            with copier.queue():
                yield copier.send(numbered(number, 4000 + number % 3))

    busy = torch.randn(side, side, device=device)
    kept = []
    for number, each in enumerate(Prefetched(sent(), 3, "sender")):
        for _ in range(4):
            busy = (busy @ busy).tanh()
        got = copier.receive(each)
        # Queued behind the products; `got` is dropped by the host long before it runs.
        kept.append([tensor.long().sum() for tensor in got.tensors().values()])
        if number % 50 == 0:
            assert isinstance(got, PackedBatch)
            assert equal(got, numbered(number, 4000 + number % 3))
    for number, sums in enumerate(kept):
        expected = numbered(number, 4000 + number % 3)
        wanted = [int(tensor.long().sum()) for tensor in expected.tensors().values()]
        assert [int(each) for each in sums] == wanted


def test_a_loader_hands_out_the_same_batches_on_the_device(
    coloured_index: Path, device: torch.device
) -> None:
    config = LoaderConfig(
        batch_size=16, image_size=64, patch_size=8, context_length=24, mask=MaskConfig()
    )
    with (
        open_loader(coloured_index, config) as on_cpu,
        open_loader(coloured_index, replace(config, model_device=str(device))) as copied,
    ):
        for _ in range(20):
            theirs, ours = next(on_cpu), next(copied)
            assert ours.patches.device.type == device.type
            assert equal(ours, theirs)
            if device.type == "cuda":
                assert ours.host_text_offsets is not None
                assert torch.equal(ours.host_text_offsets, theirs.text_offsets)
        assert copied.stats.bytes_per_image > 32 * 192
        assert equal(copied.assemble(3), on_cpu.assemble(3))


def test_sending_does_not_wait_for_the_device(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("a CPU has no streams")
    copier, made = DeviceCopier("cuda"), numbered(0, 4000)
    with copier.queue():
        copier.send(made)  # makes the buffers
    torch.cuda.synchronize()
    busy = torch.randn(8192, 8192, device="cuda")
    for _ in range(20):
        busy = (busy @ busy).tanh()
    behind = torch.cuda.current_stream().record_event()
    with copier.queue():
        sent = copier.send(made)
    assert sent.ready is not None
    sent.ready.synchronize()
    assert not behind.query(), "the copy ended while the consumer's stream was still at work"
