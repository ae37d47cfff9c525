"""Type, recomputation and compilation of the towers: what changes with them, and what must not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tessera.model import Clip, build_clip, clip_loss
from tessera.model.execution import configure
from tessera.model.packing import pad_total

CAPTIONS = [[5, 9, 20], [32, 2, 7], [3, 3, 4], [14, 9, 12], [8, 8, 25]]


@pytest.fixture
def clip() -> Clip:
    torch.manual_seed(0)
    return build_clip("tessera-demo")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    before = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = before
    torch.compiler.reset()


def batch(seed: int, captions: list[int]) -> list[Tensor]:
    """Images of changing lengths and of one total, as an exact mask budget gives them."""
    torch.manual_seed(seed)
    spread = int(torch.randint(0, 20, ()))
    lengths = [32 - spread, 32, 32 + spread]
    return [
        torch.randint(0, 256, (sum(lengths), 192), dtype=torch.uint8),
        torch.cat([torch.randperm(64)[:n].sort().values for n in lengths]).int(),
        torch.tensor([0, *lengths]).cumsum(0).int(),
        torch.randint(1, 1000, (sum(captions),), dtype=torch.int32),
        torch.tensor([0, *captions]).cumsum(0).int(),
    ]


def gradients(clip: Clip, inputs: list[Tensor]) -> dict[str, Tensor]:
    """All gradients of one loss, and the features themselves."""
    clip.zero_grad()
    images, texts, scale = clip(*inputs)
    clip_loss(images, texts, scale).backward()
    found = {name: p.grad for name, p in clip.named_parameters() if p.grad is not None}
    return {**found, "images": images.detach(), "texts": texts.detach()}


def assert_same(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        distance = (actual[name] - value).norm() / value.norm().clamp(min=1e-6)
        assert distance <= tolerance, f"{name}: {distance:.2e}"


def test_recomputed_blocks_give_the_same_gradients_from_less_memory(clip: Clip) -> None:
    inputs = batch(0, CAPTIONS[0])
    wanted, kept = _with_bytes_kept(clip, inputs)
    configure(clip, checkpoint_blocks=True)
    actual, recomputed = _with_bytes_kept(clip, inputs)
    assert_same(actual, wanted, 0.0)
    assert recomputed < kept / 3


def _with_bytes_kept(clip: Clip, inputs: list[Tensor]) -> tuple[dict[str, Tensor], int]:
    """Gradients, and bytes that autograd kept for the backward pass beside parameters."""
    parameters = {p.data_ptr() for p in clip.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = clip(*inputs)
        total = sum(kept.values())
    del found
    return gradients(clip, inputs), total


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_blocks_give_the_same_and_compile_no_more_after_warm_up(clip: Clip) -> None:
    batches = [batch(seed, captions) for seed, captions in enumerate(CAPTIONS)]
    wanted = [gradients(clip, inputs) for inputs in batches]
    totals = {len(pad_total(b[3], b[4], 32)[0]) for b in batches}
    assert len(totals) < len({len(b[3]) for b in batches})
    configure(clip, compile_blocks=True, backend="aot_eager")
    for inputs, expected in zip(batches, wanted, strict=True):
        assert_same(gradients(clip, inputs), expected, 1e-4)
    # Other lengths of the same totals: one more compilation would be an error here.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(10, 13):
            for captions in CAPTIONS:
                shuffled = captions[1:] + captions[:1]
                gradients(clip, batch(seed, shuffled))


def test_padding_the_totals_changes_nothing(clip: Clip) -> None:
    inputs = batch(3, CAPTIONS[0])
    wanted = gradients(clip, inputs)
    assert clip.text is not None
    clip.text.execution = clip.image.execution = type(clip.text.execution)(static_shapes=True)
    assert_same(gradients(clip, inputs), wanted, 1e-5)


def test_bfloat16_is_what_the_blocks_see_and_float32_what_the_optimiser_sees(clip: Clip) -> None:
    inputs = batch(0, CAPTIONS[0])
    wanted = gradients(clip, inputs)
    configure(clip, compute_dtype=torch.bfloat16, residual_dtype=torch.bfloat16)
    seen = set()
    assert clip.text is not None
    for block in (*clip.image.blocks, *clip.text.blocks):
        block.register_forward_hook(lambda _block, ins, out: seen.update((ins[0].dtype, out.dtype)))
    actual = gradients(clip, inputs)
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in clip.parameters())
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in clip.parameters())
    # 8 bits of mantissa: each product is off by up to 2**-9 and the layers add up.
    for name, expected in wanted.items():
        cosine = torch.cosine_similarity(actual[name].flatten(), expected.flatten(), dim=0)
        assert cosine > 0.95, f"{name}: {cosine:.4f}"
    for name in ("images", "texts"):
        assert (actual[name] - wanted[name]).norm(dim=1).max() < 0.05
    assert not actual["images"].equal(wanted["images"])
