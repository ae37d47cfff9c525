"""Weights for masks by embeddings: exact steps, nothing made twice, no thread that hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.pipeline import LoaderConfig, PackedBatch, open_loader
from tessera.pipeline.loader import Loader
from tessera.pipeline.mask_updates import MaskWeights
from tessera.pipeline.masking import MaskConfig
from tests.imagined_cuda import imagined_cuda

EVERY, STEPS = 3, 8
CONFIG = LoaderConfig(
    batch_size=16,
    image_size=32,
    patch_size=8,
    context_length=24,
    num_threads=1,
    prefetch=2,
    device="cpu",
    num_steps=STEPS,
    mask=MaskConfig(kind="cluster", embedding_first=0.5, embedding_last=1.0, embedding_every=EVERY),
    await_mask_weights=True,
)


def weights(step: int) -> dict[str, Any]:
    """What a model might have learnt by `step`."""
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(12, 3 * 8 * 8, generator=generator),
        "positions": torch.randn(16, 12, generator=generator),
        "step": step,
    }


def serve(loader: Loader, first: int, last: int) -> list[PackedBatch]:
    batches = []
    for step in range(first, last):
        if step % EVERY == 0:
            given = weights(step)
            loader.set_patch_embedding(**given)
            given["weight"].zero_()  # as an optimiser changes them, in place
        batches.append(next(loader))
    return batches


@contextmanager
def opened(index: Path, **changes: Any) -> Iterator[Loader]:
    with open_loader(index, replace(CONFIG, **changes)) as loader:
        yield loader


def same(ours: list[PackedBatch], theirs: list[PackedBatch]) -> bool:
    pairs = [(a.tensors(), b.tensors()) for a, b in zip(ours, theirs, strict=True)]
    return all(torch.equal(value, b[name]) for a, b in pairs for name, value in a.items())


def test_masks_are_those_of_batches_made_one_by_one(coloured_index: Path) -> None:
    with opened(coloured_index) as loader:
        ours = serve(loader, 0, STEPS)
    with opened(coloured_index, await_mask_weights=False) as loader:
        theirs = []
        for step in range(STEPS):
            loader.set_patch_embedding(**weights(step - step % EVERY))
            theirs.append(loader.assemble(step))
    assert same(ours, theirs)
    with opened(coloured_index) as loader:
        loader.set_patch_embedding(**weights(0))
        assert not same(ours[EVERY:], [loader.assemble(step) for step in range(EVERY, STEPS)])


def test_an_update_keeps_the_threads_and_no_batch_is_made_twice(coloured_index: Path) -> None:
    with opened(coloured_index) as loader:
        serve(loader, 0, EVERY)
        threads = names()
        serve(loader, EVERY, 2 * EVERY)
        assert names() == threads
        assert loader.stats.decode.num_samples == 2 * EVERY * CONFIG.batch_size
    others = names()
    with opened(coloured_index, await_mask_weights=False) as loader:
        serve(loader, 0, EVERY)
        loader.set_patch_embedding(**weights(EVERY))
        assert not names() - others, "what was made ahead is dropped"


def names() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("tessera-")}


@pytest.mark.parametrize("first", [3, 4, 5])
def test_a_run_that_is_resumed_has_the_same_masks(coloured_index: Path, first: int) -> None:
    with opened(coloured_index) as loader:
        whole = serve(loader, 0, STEPS)
    with opened(coloured_index) as loader:
        loader.seek(first)
        loader.set_patch_embedding(**weights(EVERY))
        assert same(serve(loader, first, STEPS), whole[first:])
        loader.seek(1)  # backwards, which ends the thread where it waits
        loader.set_patch_embedding(**weights(0))
        assert same(serve(loader, 1, 5), whole[1:5])


def test_a_step_without_its_weights_is_refused(coloured_index: Path) -> None:
    others = names()
    with opened(coloured_index) as loader:
        with pytest.raises(RuntimeError, match="step 0 needs new weights"):
            next(loader)
        serve(loader, 0, EVERY)
        with pytest.raises(RuntimeError, match="step 3 needs new weights"):
            next(loader)
        before = names() - others
    assert before
    assert not names() - others, "closing ends a thread that waits for weights"


def test_a_mask_of_pixels_takes_no_weights(coloured_index: Path) -> None:
    with opened(coloured_index, mask=MaskConfig(kind="cluster")) as loader:
        assert len(next(loader).sample_ids) == 16
        with pytest.raises(ValueError, match="compares pixels only"):
            loader.set_patch_embedding(**weights(0))


@pytest.mark.parametrize("masks_on", ["cpu", "cuda"])
@pytest.mark.parametrize("model_on", ["cpu", "cuda"])
def test_the_training_loop_waits_for_no_copy(
    monkeypatch: pytest.MonkeyPatch, model_on: str, masks_on: str
) -> None:
    calls: list[str] = []
    event = SimpleNamespace(
        record=lambda stream: calls.append("record"),
        synchronize=lambda: calls.append("host waits"),
    )
    stream = SimpleNamespace(wait_event=lambda event: calls.append("stream waits"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    with imagined_cuda():
        weight = torch.empty(12, 192, dtype=torch.bfloat16, device=model_on)
        positions = torch.empty(16, 12, device=model_on)
        queued = MaskWeights.queue(weight, positions, 3, masks_on)
        assert calls == ([] if model_on == masks_on == "cpu" else ["record"])
        queued.receive()
    assert queued.weight.device.type == masks_on
    assert queued.weight.dtype == torch.float32
    waits = {"cuda": "stream waits", "cpu": "host waits"}[masks_on]
    assert calls[1:] == ([] if model_on == masks_on == "cpu" else [waits])
