"""A loader's batch made on a CUDA device that is not there: whatever would stop the host raises."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.pipeline import LoaderConfig, PackedBatch, open_loader
from tessera.pipeline.augment_config import AugmentConfig
from tessera.pipeline.decoding.decoder import Decoded
from tessera.pipeline.loader import Loader
from tessera.pipeline.masking import MaskConfig, triton_cluster
from tessera.training.accumulation import equal_chunks, split

CONFIG = LoaderConfig(
    batch_size=32,
    image_size=32,
    patch_size=8,
    context_length=24,
    device="cuda",
    num_threads=1,
)
AUGMENT = AugmentConfig(flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), greyscale=0.2)


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait: copies to the host, and blocking ones to the device."""

    def __init__(self, pinned: set[int]) -> None:
        super().__init__()
        self._pinned = pinned

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        found = func(*args, **kwargs)
        if name.startswith(("aten._to_copy", "aten.copy_")):
            source = args[1] if "copy_" in name and "_to_copy" not in name else args[0]
            source_type, target_type = source.device.type, found.device.type
            waits = not (kwargs.get("non_blocking") or True in args[2:])
            if source_type == "cuda" and target_type == "cpu" and waits:
                raise AssertionError(f"{name} reads the device")
            if source_type == "cpu" and target_type == "cuda" and id(source) not in self._pinned:
                raise AssertionError(f"{name} copies from memory that is not pinned")
            if source_type != target_type and waits:
                raise AssertionError(f"{name} waits for its copy")
        reads = name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.item"))
        if reads and args[0].device.type == "cuda":
            raise AssertionError(f"{name} reads the device")
        return found


class ImaginedDecoder:
    """Images on the device, as DALI leaves them there."""

    name = "dali-cuda:0"

    def decode(self, encoded: list[bytes], windows: Any, plain: Any = None) -> Decoded:
        shape = (len(encoded), CONFIG.image_size, CONFIG.image_size, 3)
        images = torch.empty(shape, dtype=torch.uint8, device="cuda")
        return Decoded(images=images, failures={})


class Kernel:
    """A Triton kernel that is launched and does nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """torch with a CUDA device as far as a loader asks for one; the ids of pinned tensors."""
    pinned: set[int] = set()
    kept: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        kept.append(tensor.clone())
        pinned.add(id(kept[-1]))
        return kept[-1]

    stream = SimpleNamespace(device=torch.device("cuda", 0), wait_event=lambda event: None)
    event = SimpleNamespace(record=lambda stream: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: ExitStack())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(triton_cluster, "_similarity_kernel", Kernel())
    monkeypatch.setattr(triton_cluster, "_gather_kernel", Kernel())
    monkeypatch.setattr(
        "tessera.pipeline.assembler.open_decoder", lambda *a, **k: ImaginedDecoder()
    )
    return pinned


def make_two(loader: Loader, pinned: set[int]) -> PackedBatch:
    with FakeTensorMode(allow_non_fake_inputs=True):
        loader.assemble(0)  # constants of the device are made once, and waited for
        with NoWaiting(pinned):
            batch = loader.assemble(1)
    assert all(tensor.device.type == "cuda" for tensor in batch.tensors().values())
    return batch


def opened(index: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Loader:
    with monkeypatch.context() as patch:  # a FakeTensorMode would look for the device
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return open_loader(index, replace(CONFIG, **changes))


@pytest.mark.parametrize("kind", ["cluster", "random", "grid", "block", "none"])
def test_a_batch_is_made_without_waiting_for_the_device(
    coloured_index: Path, imagined: set[int], monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    ratio = 0.75 if kind == "grid" else 0.5
    mask = MaskConfig(kind=kind, mask_ratio=ratio)
    for augment in (AugmentConfig(), AUGMENT):
        with opened(coloured_index, monkeypatch, mask=mask, augment=augment) as loader:
            batch = make_two(loader, imagined)
            parts = cut(batch, loader, 4)
    assert batch.patches.shape[1] == 3 * 8 * 8
    assert [len(part.patches) for part in parts] == [len(batch.patches) // 4] * 4


def test_masks_by_embeddings_wait_for_nothing_either(
    coloured_index: Path, imagined: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = MaskConfig(kind="cluster", mask_ratio=0.5, embedding_first=1.0, embedding_last=1.0)
    with opened(coloured_index, monkeypatch, mask=mask) as loader:
        with FakeTensorMode(), NoWaiting(imagined):
            weight = torch.empty(12, 3 * 8 * 8, device="cuda")
            positions = torch.empty(16, 12, device="cuda")
            loader.set_patch_embedding(weight, positions, 0)
        batch = make_two(loader, imagined)
    assert len(batch.patches) == CONFIG.batch_size * 16 // 2


def test_chunks_that_cut_a_mask_budget_wait_for_no_more_than_their_batch(
    coloured_index: Path, imagined: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = MaskConfig(kind="cluster", mask_ratio=0.5, group_size=16)
    with opened(coloured_index, monkeypatch, mask=mask) as loader:
        batch = make_two(loader, imagined)
        assert batch.host_image_offsets is not None
        assert batch.host_image_offsets.device.type == "cpu"
        waits: list[str] = []
        ready: Any = SimpleNamespace(synchronize=lambda: waits.append("batch"))
        uneven = torch.tensor([0, 9, *range(16, 257, 8)], dtype=torch.int32)
        uneven[8] += 1
        batch = replace(batch, host_image_offsets=uneven, host_ready=ready)
        parts = cut(batch, loader, 4)
    assert [len(part.patches) for part in parts] == [65, 63, 64, 64]
    assert waits == ["batch"]


def cut(batch: PackedBatch, loader: Loader, num_chunks: int) -> list[PackedBatch]:
    """As a training step does; the places of the texts are in host memory."""
    config = loader.config
    size = config.local_batch_size // num_chunks
    equal = equal_chunks(loader.mask, config.num_patches, size, config.group_size)
    texts = torch.arange(config.local_batch_size + 1, dtype=torch.int32)
    with NoWaiting(set()):
        return split(replace(batch, host_text_offsets=texts), num_chunks, equal_patches=equal)


def test_the_guard_sees_what_waits(imagined: set[int]) -> None:
    array = torch.from_numpy(np.ones(3))
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting(imagined):
        with pytest.raises(AssertionError, match="not pinned"):
            array.to("cuda")
        with pytest.raises(AssertionError, match="waits for its copy"):
            array.pin_memory().to("cuda")
        with pytest.raises(AssertionError, match="reads the device"):
            torch.empty(3, device="cuda").cpu()
